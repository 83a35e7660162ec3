//! The main comparison as a picture: horizontal bars, readable in light and dark.

use crate::figures::{Row, Unit};

struct Bar {
    name: String,
    value: f64,
    is_ours: bool,
}

/// Bars for the rates of a group: what was seen once, then its references. `None` if there are none.
pub fn bars(rows: &[Row], group: &str, title: &str) -> Option<String> {
    let rates = rows.iter().filter(|row| row.group == group && row.unit == Unit::PerSecond);
    let mut lines: Vec<(String, Vec<Bar>)> = Vec::new();
    for row in rates {
        if lines.last().is_none_or(|(what, _)| *what != row.what) {
            lines.push((
                row.what.clone(),
                vec![Bar { name: "acapy-deliver".to_string(), value: row.seen.median, is_ours: true }],
            ));
        }
        let (_, bars) = lines.last_mut().expect("just pushed");
        if let Some((name, theirs)) = row.reference.as_ref().filter(|(_, theirs)| theirs.median.is_finite()) {
            bars.push(Bar { name: name.clone(), value: theirs.median, is_ours: false });
        }
    }
    let most = lines.iter().flat_map(|(_, bars)| bars).map(|bar| bar.value).fold(0.0, f64::max);
    if most == 0.0 {
        return None;
    }
    let (left, width, step) = (230.0, 400.0, 20.0);
    let mut body = format!("<text x=\"8\" y=\"20\" font-weight=\"bold\">{title}</text>\n");
    let mut y = 46.0;
    for (what, bars) in &lines {
        body += &format!("<text x=\"8\" y=\"{y}\" font-style=\"italic\">{what}</text>\n");
        y += 8.0;
        for bar in bars {
            let long = bar.value / most * width;
            let colour = if bar.is_ours { "#2a7ab9" } else { "#9a9a9a" };
            let (text, end) = (y + 12.0, left + long + 6.0);
            body += &format!(
                "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{left}\" y=\"{y}\" width=\"{long:.1}\" height=\"15\" fill=\"{colour}\"/>\
                 <text x=\"{end:.1}\" y=\"{text}\">{}</text>\n",
                left - 8.0,
                bar.name,
                Unit::PerSecond.number(bar.value),
            );
            y += step;
        }
        y += 22.0;
    }
    let height = y;
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" width=\"720\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>text {{ fill: #333 }} @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} }}</style>\n\
         {body}</svg>\n"
    ))
}
