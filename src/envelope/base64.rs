//! base64, as the payload of a JSON message is written: with the URL alphabet and padding by the plugin. Read
//! are also the standard alphabet, any padding and none, white space between the letters, and bits left over at
//! the end, as others write it.
//!
//! By tables, four letters a step: this is most of what a message in JSON costs more than one in MessagePack, and
//! of a decoder for one alphabet at a time each message of another would be read twice.

/// Decodes into the beginning of `out`, which must have room for all that these letters can say
/// ([`most`]). Says how many bytes they were, or `None` if this is not base64.
pub(super) fn decode(letters: &[u8], out: &mut [u8]) -> Option<usize> {
    decode_plain(letters, out).or_else(|| {
        let letters: Vec<u8> = letters.iter().copied().filter(|letter| !letter.is_ascii_whitespace()).collect();
        decode_plain(&letters, out)
    })
}

/// The most bytes that so many letters can say.
pub(super) fn most(n_letters: usize) -> usize {
    n_letters.div_ceil(4) * 3
}

/// The same for letters without white space.
pub(super) fn decode_plain(mut letters: &[u8], out: &mut [u8]) -> Option<usize> {
    while let [before @ .., b'='] = letters {
        letters = before;
    }
    let (fours, rest) = letters.as_chunks::<4>();
    let (threes, _) = out.as_chunks_mut::<3>();
    // Looked at once, at the end: a branch for each four would cost as much as the look-ups.
    let mut seen = 0;
    for (four, three) in fours.iter().zip(threes) {
        let bits = bits_of(four);
        seen |= bits;
        let [first, second, third, _] = bits.to_le_bytes();
        *three = [first, second, third];
    }
    let n = fours.len() * 3;
    let n_rest = match *rest {
        [] => 0,
        [a, b] => {
            let bits = bits_of(&[a, b, b'A', b'A']);
            seen |= bits;
            out[n] = bits.to_le_bytes()[0];
            1
        }
        [a, b, c] => {
            let bits = bits_of(&[a, b, c, b'A']);
            seen |= bits;
            out[n..n + 2].copy_from_slice(&bits.to_le_bytes()[..2]);
            2
        }
        // Six bits are no byte.
        _ => return None,
    };
    (seen & NO_LETTER == 0).then_some(n + n_rest)
}

/// The three bytes that four letters say, the first lowest.
fn bits_of(&[a, b, c, d]: &[u8; 4]) -> u32 {
    BITS[0][usize::from(a)] | BITS[1][usize::from(b)] | BITS[2][usize::from(c)] | BITS[3][usize::from(d)]
}

/// Above the three bytes.
const NO_LETTER: u32 = 1 << 24;

/// What each byte says as the first, second, third and fourth of four letters.
static BITS: [[u32; 256]; 4] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = [[NO_LETTER; 256]; 4];
    let mut place = 0;
    while place < 4 {
        let mut six = 0;
        while six < 64 {
            let [_, first, second, third] = ((six as u32) << (18 - 6 * place)).to_be_bytes();
            let said = u32::from_le_bytes([first, second, third, 0]);
            bits[place][alphabet[six] as usize] = said;
            match alphabet[six] {
                b'-' => bits[place][b'+' as usize] = said,
                b'_' => bits[place][b'/' as usize] = said,
                _ => {}
            }
            six += 1;
        }
        place += 1;
    }
    bits
};

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(letters: &str) -> Option<Vec<u8>> {
        let mut out = vec![0x55; most(letters.len())];
        let n = decode(letters.as_bytes(), &mut out)?;
        out.truncate(n);
        Some(out)
    }

    #[test]
    fn every_byte_in_every_place_is_read_in_every_spelling() {
        for byte in 0..=255u8 {
            for place in 0..9 {
                let mut bytes = [0xa5; 9];
                bytes[place] = byte;
                for n in place + 1..=9 {
                    let url = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE, &bytes[..n]);
                    let standard = url.replace('-', "+").replace('_', "/");
                    let bare = url.trim_end_matches('=');
                    let lines = bare.split_at(bare.len() / 2);
                    let lines = format!(" {}\r\n{}==\t=\n", lines.0, lines.1);
                    for spelt in [&url, &standard, bare, &lines] {
                        assert_eq!(decoded(spelt).as_deref(), Some(&bytes[..n]), "{spelt:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_letter_is_refused_in_every_place() {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_ \t\n\r\x0c".contains(&byte);
        for byte in (0..=255u8).filter(|byte| !is_letter(*byte)) {
            for n in [2, 3, 4, 6, 7, 8, 9] {
                for place in 0..n {
                    let mut letters = vec![b'A'; n];
                    letters[place] = byte;
                    let is_padding = byte == b'=' && place == n - 1 && place % 4 != 1;
                    let mut out = vec![0; most(n)];
                    assert_eq!(decode(&letters, &mut out).is_some(), is_padding, "{byte:#04x} at {place} of {n}");
                }
            }
        }
        for lonely in ["A", "AAAAA", "A===", " A "] {
            assert_eq!(decoded(lonely), None, "{lonely:?}");
        }
        assert_eq!(decoded("").as_deref(), Some(&b""[..]));
        assert_eq!(decoded("====").as_deref(), Some(&b""[..]));
    }
}
