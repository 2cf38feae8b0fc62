//! The medians as a picture, for the README: one group of bars a scenario, all on one scale.

use std::fmt;

/// Bars that belong together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) title: String,
    /// Name and milliseconds, in the order in which they are shown.
    pub(crate) bars: Vec<(String, f64)>,
}

/// An SVG of groups, drawn for light and dark pages.
#[derive(Debug)]
pub(crate) struct Chart<'a> {
    pub(crate) groups: &'a [Group],
    /// Whose bars stand out.
    pub(crate) ours: &'a str,
}

const WIDTH: f64 = 760.0;
/// Where bars begin: what is left of it is for names.
const AXIS: f64 = 150.0;
/// Room for the number behind the longest bar.
const NUMBER: f64 = 90.0;
const BAR: f64 = 16.0;
const STEP: f64 = 22.0;
const TITLE: f64 = 34.0;

const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600 } \
     .peer { fill: #9aa4b2 } .ours { fill: #d1570b } \
     @media (prefers-color-scheme: dark) { text { fill: #d6dce4 } .peer { fill: #5d6878 } }";

impl fmt::Display for Chart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bars = self.groups.iter().map(|group| group.bars.len()).sum::<usize>() as f64;
        let height = self.groups.len() as f64 * TITLE + bars * STEP + 10.0;
        let longest = self.groups.iter().flat_map(|group| &group.bars).map(|(_, time)| *time);
        let scale = (WIDTH - AXIS - NUMBER) / longest.fold(f64::MIN_POSITIVE, f64::max);
        writeln!(
            f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-label=\"Milliseconds of whole commands, shorter is better\">\n<style>{STYLE}</style>"
        )?;
        let mut top = 0.0;
        for group in self.groups {
            let title = escaped(&group.title);
            writeln!(f, "<text class=\"title\" x=\"0\" y=\"{}\">{title}</text>", top + 22.0)?;
            top += TITLE;
            for (name, time) in &group.bars {
                self.bar(f, name, *time, top, time * scale)?;
                top += STEP;
            }
        }
        writeln!(f, "</svg>")
    }
}

impl Chart<'_> {
    fn bar(&self, f: &mut fmt::Formatter<'_>, name: &str, time: f64, top: f64, width: f64) -> fmt::Result {
        let class = if name == self.ours { "ours" } else { "peer" };
        let line = top + 12.5;
        let width = width.max(1.0);
        let before = AXIS - 8.0;
        writeln!(f, "<text x=\"{before}\" y=\"{line}\" text-anchor=\"end\">{}</text>", escaped(name))?;
        writeln!(
            f,
            "<rect class=\"{class}\" x=\"{AXIS}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
        )?;
        writeln!(f, "<text x=\"{:.1}\" y=\"{line}\">{time:.1} ms</text>", AXIS + width + 6.0)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_times_say() {
        let groups = [Group {
            title: "`run a<b`".into(),
            bars: vec![("insula".into(), 26.0), ("docker".into(), 520.0)],
        }];
        let text = Chart { groups: &groups, ours: "insula" }.to_string();
        assert!(text.contains("class=\"ours\" x=\"150\" y=\"34\" width=\"26.0\""), "{text}");
        assert!(text.contains("class=\"peer\" x=\"150\" y=\"56\" width=\"520.0\""), "{text}");
        assert!(text.contains(">run a&lt;b<") && text.contains("520.0 ms"), "{text}");
    }
}
