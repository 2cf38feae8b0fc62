//! Where unsafe code is: in `crates/sys` and `crates/vmm`, nowhere else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const FOLDERS: &[&str] = &["crates", "bin", "tests", "bench", "fuzz", "xtask"];
const WITH_UNSAFE: &[&str] = &["crates/sys", "crates/vmm"];

/// One sentence for each line with unsafe code where none may be.
pub(crate) fn check(root: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut faults = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        if WITH_UNSAFE.iter().any(|folder| name.starts_with(folder)) {
            continue;
        }
        let text = fs::read_to_string(&file)?;
        faults.extend(
            unsafe_lines(&text).into_iter().map(|line| {
                format!("{}:{line} has unsafe code, which belongs into crates/sys", name.display())
            }),
        );
    }
    Ok(faults)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Numbers of the lines whose code (not comments, not literals) has the word `unsafe`, or lifts
/// the lint that forbids it.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let code = blank_literals(text);
    code.lines()
        .enumerate()
        .filter(|(_, line)| words(line).any(|word| word == "unsafe") || lifts_lint(line))
        .map(|(index, _)| index + 1)
        .collect()
}

fn lifts_lint(line: &str) -> bool {
    let lifted = words(line).any(|word| matches!(word, "allow" | "warn" | "expect"));
    lifted && words(line).any(|word| word == "unsafe_code")
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The text with comments, strings and characters replaced by spaces; line breaks stay.
fn blank_literals(text: &str) -> String {
    let mut rest = text;
    let mut code = String::with_capacity(text.len());
    while let Some(first) = rest.chars().next() {
        let length = literal_length(rest, code.chars().next_back());
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// Bytes of the comment or literal that `rest` begins with; 0 if it begins with neither.
fn literal_length(rest: &str, before: Option<char>) -> usize {
    let end_after = |pattern: &str, from: usize| {
        rest[from..].find(pattern).map_or(rest.len(), |at| from + at + pattern.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return end_after("*/", 2);
    }
    if rest.starts_with('"') {
        return escaped_end(rest, '"');
    }
    if rest.starts_with('r')
        && !before.is_some_and(|c| c.is_alphanumeric() && c != 'b' && c != 'c' || c == '_')
    {
        let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
        if rest[1 + hashes..].starts_with('"') {
            return end_after(&format!("\"{}", "#".repeat(hashes)), 2 + hashes);
        }
    }
    if rest.starts_with('\'') { character_length(rest) } else { 0 }
}

fn escaped_end(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal, told from a lifetime by its closing quote.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => escaped_end(rest, '\''),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_is_found() {
        assert_eq!(unsafe_lines("fn a() {\n    unsafe { b() }\n}\nunsafe impl Send for A {}"), [2, 4]);
        assert_eq!(unsafe_lines("#[unsafe(no_mangle)]\nfn a() {}"), [1]);
        assert_eq!(unsafe_lines("#![allow(unsafe_code)]"), [1]);
        assert_eq!(unsafe_lines("let q = '\"'; unsafe { b() } // \""), [1]);
        assert_eq!(unsafe_lines("fn a<'a>(b: &'a str) { unsafe { c('\\'') } }"), [1]);
    }

    #[test]
    fn words_in_comments_and_literals_are_not_code() {
        for text in [
            "// unsafe {",
            "/* unsafe\n{ */",
            "let a = \"unsafe { \\\" unsafe\";",
            "let a = r#\"unsafe \" { unsafe\"#;",
            "#![deny(unsafe_code)]",
            "let unsafely = 1;",
        ] {
            assert_eq!(unsafe_lines(text), Vec::<usize>::new(), "{text}");
        }
    }

    #[test]
    fn a_tree_is_searched_but_for_sys() {
        let root = std::env::temp_dir().join(format!("insula-test-source-{}", std::process::id()));
        for (file, text) in [("crates/sys/a.rs", "unsafe {}"), ("crates/store/src/b.rs", "\nunsafe {}")] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let faults = check(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            faults.unwrap(),
            ["crates/store/src/b.rs:2 has unsafe code, which belongs into crates/sys"]
        );
    }
}
