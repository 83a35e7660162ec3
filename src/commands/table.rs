//! Aligned tables for people. Texts of strangers cannot move the cursor; the last
//! column is as long as it likes, the others are cut at a bound.

use std::io::{self, Write};

use crate::text::visible;

/// A column wider than this is not waited for: its cell sticks out instead.
const WIDEST: usize = 60;

/// A table under construction. Numbers are aligned to the right.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
    has_head: bool,
}

impl Table {
    /// A table with these headings; those that begin with `#` (not shown) are of numbers.
    pub fn new(headings: &[&'static str]) -> Table {
        let widths = headings.iter().map(|heading| heading.trim_start_matches('#').len()).collect();
        Table { headings: headings.to_vec(), rows: Vec::new(), widths, has_head: true }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        let cells: Vec<String> = cells.iter().map(|cell| visible(cell)).collect();
        for (cell, width) in cells.iter().zip(&mut self.widths) {
            *width = (*width).max(cell.chars().count().min(WIDEST));
        }
        self.rows.push(cells);
    }

    /// Writes what there is and forgets it. What is added afterwards goes below it,
    /// without headings again.
    pub fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.has_head && !self.rows.is_empty() {
            let head: Vec<String> = self.headings.iter().map(|h| h.trim_start_matches('#').to_string()).collect();
            self.write_row(out, &head)?;
            self.has_head = false;
        }
        for row in std::mem::take(&mut self.rows) {
            self.write_row(out, &row)?;
        }
        Ok(())
    }

    fn write_row(&self, out: &mut impl Write, cells: &[String]) -> io::Result<()> {
        let mut line = String::new();
        for (n, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            if n > 0 {
                line.push_str("  ");
            }
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            if self.headings[n].starts_with('#') {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
        }
        writeln!(out, "{}", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_moves_the_cursor() {
        let mut table = Table::new(&["NAME", "#N", "WHY"]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert!(out.is_empty(), "an empty table has no headings either");
        table.row(vec!["a".into(), "5".into(), "x\ny".into()]);
        table.row(vec!["longer".into(), "1234".into(), String::new()]);
        table.write(&mut out).unwrap();
        table.row(vec!["b".into(), "6".into(), "z".into()]);
        table.write(&mut out).unwrap();
        let expected = "NAME       N  WHY\na          5  x\\ny\nlonger  1234\nb          6  z\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
