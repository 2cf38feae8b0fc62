//! Lists: rows of named cells, shown as a table, by a template or as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;

use super::template::Compiled;
use crate::printer;

/// What the labels are called in the data of a template, for the function that stands for `.Label`.
const LABELS: &str = "InsulaLabels";

/// One line: the cells by their template names, and labels for `.Label "name"`.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) cells: Vec<(&'static str, String)>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Row {
    fn cell(&self, name: &str) -> &str {
        self.cells.iter().find(|(cell, _)| *cell == name).map_or("", |(_, text)| text)
    }

    fn to_value(&self) -> Value {
        let mut map: BTreeMap<Arc<str>, Value> =
            self.cells.iter().map(|(name, text)| (Arc::from(*name), Value::from(text.clone()))).collect();
        let labels: BTreeMap<Arc<str>, Value> = self
            .labels
            .iter()
            .map(|(name, value)| (Arc::from(name.as_str()), Value::from(value.clone())))
            .collect();
        map.insert(Arc::from(LABELS), Value::from(labels));
        Value::from(map)
    }

    fn to_json(&self) -> String {
        let map: BTreeMap<&str, &str> =
            self.cells.iter().map(|(name, text)| (*name, text.as_str())).collect();
        serde_json::json!(map).to_string()
    }
}

/// The headers by template names, and which columns are shown when no format is given.
#[derive(Debug)]
pub(crate) struct Columns {
    pub(crate) headers: &'static [(&'static str, &'static str)],
    pub(crate) shown: Vec<&'static str>,
}

/// The list as text, by `format` (empty is the table of the columns shown).
pub(crate) fn render(columns: &Columns, rows: &[Row], format: &str) -> anyhow::Result<String> {
    match format {
        "" | "table" => Ok(columns.table(rows)),
        "json" | "{{json .}}" | "{{ json . }}" => Ok(rows.iter().map(|row| row.to_json() + "\n").collect()),
        template => match template.strip_prefix("table ") {
            Some(template) => columns.template_table(rows, template.trim_start()),
            None => {
                let template = Compiled::new(template)?;
                rows.iter().map(|row| Ok(template.render(&row.to_value().into())? + "\n")).collect()
            }
        },
    }
}

/// Renders and prints.
pub(crate) fn print(columns: &Columns, rows: &[Row], format: &str) -> anyhow::Result<()> {
    Ok(printer::text(&render(columns, rows, format)?)?)
}

impl Columns {
    fn header(&self, name: &str) -> &'static str {
        self.headers.iter().find(|(cell, _)| *cell == name).map_or("", |(_, header)| header)
    }

    fn table(&self, rows: &[Row]) -> String {
        let mut lines: Vec<Vec<&str>> = Vec::with_capacity(rows.len() + 1);
        lines.push(self.shown.iter().map(|name| self.header(name)).collect());
        lines.extend(rows.iter().map(|row| self.shown.iter().map(|name| row.cell(name)).collect()));
        align(&lines)
    }

    /// The header is the template, with the headers as data and functions that change nothing.
    fn template_table(&self, rows: &[Row], template: &str) -> anyhow::Result<String> {
        let mut headers: BTreeMap<Arc<str>, Value> =
            self.headers.iter().map(|(name, header)| (Arc::from(*name), Value::from(*header))).collect();
        headers.insert(Arc::from(LABELS), Value::Nil);
        let mut text = Compiled::of_headers(template)?.render(&Value::from(headers).into())? + "\n";
        let template = Compiled::new(template)?;
        for row in rows {
            text.push_str(&template.render(&row.to_value().into())?);
            text.push('\n');
        }
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        Ok(align(&lines))
    }
}

/// Columns at least 10 wide with 3 spaces between them, as Docker lays tables out.
pub(crate) fn align(lines: &[Vec<&str>]) -> String {
    align_at_least(lines, 10)
}

/// Columns of another least width.
pub(crate) fn align_at_least(lines: &[Vec<&str>], least: usize) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![least; count];
    for line in lines {
        for (cell, width) in line.iter().zip(&mut widths) {
            *width = (*width).max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for line in lines {
        for (index, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if index + 1 < line.len() {
                let padding = widths[index] - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', padding));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_a_column() {
        let row = Row {
            cells: vec![("Names", "web".into())],
            labels: BTreeMap::from([("a.my-role".into(), "db".into())]),
        };
        let text = render(&columns(), &[row], "table {{.Names}}\\t{{.Label \"a.my-role\"}}").unwrap();
        assert_eq!(text, "NAMES     my role\nweb       db\n");
    }

    fn columns() -> Columns {
        Columns { headers: &[("ID", "CONTAINER ID"), ("Names", "NAMES")], shown: vec!["ID", "Names"] }
    }

    fn rows() -> Vec<Row> {
        let row = |id: &str, name: &str| Row {
            cells: vec![("ID", id.to_owned()), ("Names", name.to_owned())],
            labels: [("tier".to_owned(), "db".to_owned())].into(),
        };
        vec![row("0123456789ab", "web"), row("ba9876543210", "a_much_longer_name")]
    }

    #[test]
    fn tables_and_templates() {
        let of = |format| render(&columns(), &rows(), format).unwrap();
        assert_eq!(of(""), "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   a_much_longer_name\n");
        assert_eq!(
            of("table {{.Names}}\\t{{upper .ID}}").lines().next().unwrap(),
            "NAMES                CONTAINER ID"
        );
        assert_eq!(of("{{.Names}} {{.Label \"tier\"}}").lines().next().unwrap(), "web db");
        assert_eq!(of("{{.Names}}{{.Label \"no\"}}").lines().next().unwrap(), "web");
        assert_eq!(of("json").lines().next().unwrap(), r#"{"ID":"0123456789ab","Names":"web"}"#);
        assert!(render(&columns(), &rows(), "{{.Nope}}").unwrap_err().to_string().contains("Nope"));
        assert!(render(&columns(), &rows(), "{{.ID").is_err());
    }
}
