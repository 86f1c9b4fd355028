//! The product's source files as the rules see them: without comments, texts and test modules, line for line where they were.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) struct Source {
    /// From the root: `src/keys/create.rs`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with comments, literals and test modules blanked, byte for byte.
    code: String,
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of `src/`, except what is built for tests alone.
pub(crate) fn sources() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    SOURCES.get_or_init(|| {
        let mut files = Vec::new();
        collect(&root().join("src"), &mut files);
        assert!(files.len() > 50, "only {} files found", files.len());
        files.sort();
        files.iter().map(|file| Source::read(file)).collect()
    })
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of src") {
        let path = entry.expect("a file of src").path();
        let for_tests = path.file_stem().is_some_and(|stem| stem == "tests");
        if for_tests {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    fn read(file: &Path) -> Self {
        let path = file.strip_prefix(root()).expect("below the root");
        Self::new(path.to_str().expect("plain names"), std::fs::read_to_string(file).expect("UTF-8"))
    }

    pub(crate) fn new(path: &str, text: String) -> Self {
        let mut source = Self { path: path.to_owned(), code: blank(&text), text };
        for range in source.under_attribute("#[cfg(test)]") {
            let blanks: String = source.code[range.clone()].chars().map(blank_of).collect();
            source.code.replace_range(range, &blanks);
        }
        source
    }

    /// The first name below `src/`.
    pub(crate) fn room(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let room = below.split('/').next().unwrap_or(below);
        room.strip_suffix(".rs").unwrap_or(room)
    }

    /// `src/keys/create.rs:12`, as editors open it.
    pub(crate) fn place(&self, at: usize) -> String {
        let line = self.code[..at].matches('\n').count() + 1;
        format!("{}:{line}", self.path)
    }

    /// Where a word stands in the code, not as a part of a longer one.
    pub(crate) fn words(&self, word: &str) -> Vec<usize> {
        let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let (first, last) = (part(word.chars().next()), part(word.chars().last()));
        let whole = |at: &usize| {
            let before = part(self.code[..*at].chars().next_back());
            let after = part(self.code[at + word.len()..].chars().next());
            !(first && before || last && after)
        };
        self.code.match_indices(word).map(|(at, _)| at).filter(whole).collect()
    }

    /// The rooms that this file names, by `crate::` or by climbing out of its own with `super::`.
    pub(crate) fn imports(&self) -> Vec<(usize, String)> {
        let mut imports = Vec::new();
        for at in self.words("crate::") {
            let names = heads(&self.code[at + "crate::".len()..]);
            imports.extend(names.into_iter().map(|name| (at, name)));
        }
        let climb = "super::".repeat(self.depth());
        for at in self.words(&climb) {
            let names = heads(&self.code[at + climb.len()..]);
            imports.extend(names.into_iter().map(|name| (at, name)));
        }
        imports
    }

    /// How many `super` lead from this file's module to the crate.
    fn depth(&self) -> usize {
        let parts = self.path.matches('/').count();
        if self.path.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    /// What an attribute stands over: from it to the end of its item or statement.
    pub(crate) fn under_attribute(&self, attribute: &str) -> Vec<Range<usize>> {
        let begins = self.code.match_indices(attribute).map(|(at, _)| at);
        begins.map(|at| at..item_end(&self.code, at + attribute.len())).collect()
    }
}

/// The first names of a path or of a group of paths: `a::b` has a; `{a::b, c}` has a and c.
fn heads(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = code.strip_prefix('{') else {
        return vec![name(code)];
    };
    let (mut names, mut depth, mut begun) = (Vec::new(), 1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (c == ',' && depth == 1) {
            names.push(name(&group[begun..at]));
            begun = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The first `;`, or closing brace, that is not inside something opened after `from`.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[from..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                if c == '}' && depth == 0 {
                    return from + at + 1;
                }
            }
            ';' if depth == 0 => return from + at + 1,
            _ => {}
        }
    }
    code.len()
}

/// What stands for a character that no rule is to see. Lines stay lines, and bytes stay where they were.
fn blank_of(c: char) -> char {
    if c == '\n' { c } else { ' ' }
}

/// Blanks comments and the insides of texts and characters.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (seen, hidden) = next_piece(rest);
        code.push_str(&rest[..seen]);
        code.extend(rest[seen..seen + hidden].chars().flat_map(|c| std::iter::repeat_n(blank_of(c), c.len_utf8())));
        rest = &rest[seen + hidden..];
    }
    code
}

/// How many bytes of code come next, and how many after them are hidden.
fn next_piece(text: &str) -> (usize, usize) {
    if text.starts_with("//") {
        return (0, text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return (0, block_comment(text));
    }
    if let Some(hashes) = raw_text(text) {
        let open = text.find('"').expect("a raw text has one") + 1;
        let close = format!("\"{}", "#".repeat(hashes));
        return (0, text[open..].find(&close).map_or(text.len(), |at| open + at + close.len()));
    }
    match text.chars().next() {
        Some('"') => (0, quoted(text, '"')),
        Some('\'') => match character(text) {
            Some(length) => (0, length),
            None => (1, 0),
        },
        Some(c) if c.is_alphanumeric() || c == '_' => {
            let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
            (end.unwrap_or(text.len()), 0)
        }
        Some(c) => (c.len_utf8(), 0),
        None => (0, 0),
    }
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// How many `#` a raw text that begins here has.
fn raw_text(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// The length of a text up to its closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; `None` for a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    let (at, second) = chars.next()?;
    if first == '\\' || second == '\'' { Some(if first == '\\' { quoted(text, '\'') } else { at + 1 }) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text.to_owned())
    }

    #[test]
    fn comments_texts_and_tests_are_not_seen() {
        let text = r##"// sqlx
/* sqlx /* sqlx */ */ fn f<'a>(x: &'a str) -> char { let y = "sqlx \" sqlx"; let z = r#"sqlx"#; let b = b"sqlx"; '"' }
#[cfg(test)]
mod tests { use sqlx; fn g() {} }
fn after() { '\''; sqlx() }
"##;
        let source = source("src/a/b.rs", text);
        let found: Vec<_> = source.words("sqlx").iter().map(|at| source.place(*at)).collect();
        assert_eq!(found, ["src/a/b.rs:5"]);
    }

    #[test]
    fn imports_are_found_in_paths_groups_and_climbs() {
        let text = "use crate::{a::{b, c}, d};\nfn f() { crate::e::g(); super::super::h::i(); super::own(); }";
        let imports: Vec<_> = source("src/x/y.rs", text).imports();
        let mut names: Vec<_> = imports.into_iter().map(|(_, name)| name).collect();
        names.sort();
        assert_eq!(names, ["a", "d", "e", "h"]);
    }

    #[test]
    fn a_word_is_whole_and_an_attribute_ends_with_its_item() {
        let text =
            "fn f() { #[cfg(debug_assertions)] crate::seams::stop([1; 2]); crate::seams::stop(); my_seams::x(); }";
        let source = source("src/x.rs", text);
        let under = source.under_attribute("#[cfg(debug_assertions)]");
        let open: Vec<_> = source.words("seams").into_iter().filter(|at| !under[0].contains(at)).collect();
        assert_eq!(open.len(), 1);
    }
}
