//! The pages of `docs/`, as they were when this was built, in HTML.

use std::collections::HashMap;
use std::sync::LazyLock;

use hyper::body::Bytes;
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, html as markdown};

/// Each page's name, and its text.
const PAGES: [(&str, &str); 16] = [
    ("README", include_str!("../../../docs/README.md")),
    ("clusters", include_str!("../../../docs/clusters.md")),
    ("configuration", include_str!("../../../docs/configuration.md")),
    ("containers", include_str!("../../../docs/containers.md")),
    ("crypto-users", include_str!("../../../docs/crypto-users.md")),
    ("errors", include_str!("../../../docs/errors.md")),
    ("formats", include_str!("../../../docs/formats.md")),
    ("gamedays", include_str!("../../../docs/gamedays.md")),
    ("keys", include_str!("../../../docs/keys.md")),
    ("keys-and-algorithms", include_str!("../../../docs/keys-and-algorithms.md")),
    ("metrics", include_str!("../../../docs/metrics.md")),
    ("nodes", include_str!("../../../docs/nodes.md")),
    ("passwords", include_str!("../../../docs/passwords.md")),
    ("performance", include_str!("../../../docs/performance.md")),
    ("reliability", include_str!("../../../docs/reliability.md")),
    ("rigs", include_str!("../../../docs/rigs.md")),
];

const STYLE: &str = "body{max-width:52em;margin:2em auto;padding:0 1em;font:16px/1.5 sans-serif}\
table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2em .5em;text-align:left;vertical-align:top}\
pre{overflow:auto;background:#8881;padding:.5em}:target{background:#fc06}:root{color-scheme:light dark}";

/// Each as it is sent, made when the first one is asked for.
static IN_HTML: LazyLock<HashMap<&str, Bytes>> =
    LazyLock::new(|| PAGES.iter().map(|(name, text)| (*name, html_of(name, text).into())).collect());

/// The page of this name, if there is one.
pub(super) fn html(name: &str) -> Option<Bytes> {
    IN_HTML.get(name).cloned()
}

fn html_of(name: &str, text: &str) -> String {
    let mut body = String::new();
    markdown::push_html(&mut body, with_anchors(text).into_iter());
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>keyway: {name}</title>\
         <style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
}

/// Each heading gets a name, by which links find it: a reason its own, as errors give it, and each the one that GitHub gives it.
fn with_anchors(text: &str) -> Vec<Event<'_>> {
    let events: Vec<_> = Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH).collect();
    let mut named = Vec::with_capacity(events.len());
    for (place, event) in events.iter().enumerate() {
        match (event, heading(&events[place..])) {
            (Event::Start(Tag::Heading { level, classes, attrs, .. }), Some(words)) => {
                let (classes, attrs) = (classes.clone(), attrs.clone());
                let (own, usual) = (is_reason(&words), CowStr::from(usual_name(&words)));
                let id = if own { CowStr::from(words) } else { usual.clone() };
                named.push(Event::Start(Tag::Heading { level: *level, id: Some(id), classes, attrs }));
                if own {
                    named.push(Event::InlineHtml(format!("<a id=\"{usual}\"></a>").into()));
                }
            }
            _ => named.push(event.clone()),
        }
    }
    named
}

/// The words of the heading that begins here.
fn heading(events: &[Event<'_>]) -> Option<String> {
    let (Event::Start(Tag::Heading { .. }), rest) = events.split_first()? else { return None };
    let within = rest.iter().take_while(|event| !matches!(event, Event::End(pulldown_cmark::TagEnd::Heading(_))));
    let words = within.filter_map(|event| match event {
        Event::Text(text) | Event::Code(text) => Some(&**text),
        _ => None,
    });
    Some(words.collect())
}

fn is_reason(words: &str) -> bool {
    words.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// As GitHub names a heading.
fn usual_name(words: &str) -> String {
    let kept = words.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|char| if char == ' ' { '-' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn text(name: &str) -> Option<String> {
        html(name).map(|page| String::from_utf8(page.into()).expect("it is text"))
    }

    #[test]
    fn every_page_of_docs_is_served_and_no_other_file() {
        let docs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap().flatten();
        let files = docs.filter_map(|file| file.file_name().to_str()?.strip_suffix(".md").map(str::to_owned));
        assert_eq!(files.collect::<BTreeSet<_>>(), PAGES.iter().map(|(name, _)| (*name).to_owned()).collect());
        for name in ["", "../README", "errors.html", "decisions", "/etc/passwd"] {
            assert_eq!(html(name), None, "{name}");
        }
    }

    #[test]
    fn a_reason_is_found_by_its_name_and_a_link_by_what_github_calls_its_heading() {
        let errors = text("errors").unwrap();
        assert!(errors.contains("<h2 id=\"NO_NODE\"><a id=\"no_node\"></a>NO_NODE</h2>"), "{errors}");
        assert_eq!(usual_name("Why a connection failed"), "why-a-connection-failed");
        assert_eq!(usual_name("clusters.<cluster>"), "clusterscluster");
    }

    /// Within `docs/`: what leads out of it is for who reads it elsewhere.
    #[test]
    fn every_link_from_page_to_page_leads_somewhere() {
        let ids = |name: &str| -> Option<BTreeSet<String>> {
            let page = text(name)?;
            Some(page.split("id=\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect())
        };
        let mut dead = Vec::new();
        for (name, text) in PAGES {
            for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
                let Event::Start(Tag::Link { dest_url, .. }) = event else { continue };
                let (page, anchor) = dest_url.split_once('#').unwrap_or((&dest_url, ""));
                let page = if page.is_empty() { format!("{name}.md") } else { page.to_owned() };
                let Some(page) = page.strip_suffix(".md").filter(|page| !page.contains('/')) else { continue };
                let found = ids(page).is_some_and(|ids| anchor.is_empty() || ids.contains(anchor));
                if !found {
                    dead.push(format!("{name}: {dest_url}"));
                }
            }
        }
        assert_eq!(dead, Vec::<String>::new());
    }
}
