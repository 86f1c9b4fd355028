//! Reports as pages that need nothing from elsewhere.

use std::fmt::Write as _;

use super::plot::{escaped, little, timeline};
use super::report::{Circumstances, Fault, Latency, Refusals, Report, Span};
use super::traffic::MIX;

const STYLE: &str = include_str!("style.css");

/// One game day.
pub fn one(report: &Report) -> String {
    let mut body = format!(
        "<p class=\"over\"><a href=\"index.html\">Game days</a> / {}</p>\n<h1>{}</h1>\n<p class=\"story\">{}</p>\n",
        escaped(&report.plan),
        escaped(&report.title),
        escaped(&report.story)
    );
    body += &numbers(report);
    let _ = writeln!(body, "<div class=\"sheet scroll\">\n{}</div>", timeline(report));
    body += &promises(report);
    body += &faults(report);
    body += &latency(report);
    body += &refusals(report);
    body += &circumstances(report);
    page(&report.title, &body)
}

/// All of a run.
pub fn index(reports: &[Report]) -> String {
    let broken: Vec<_> = reports.iter().flat_map(Report::broken).collect();
    let verdict = match broken.len() {
        0 => "Every promise was kept.".to_owned(),
        1 => "One promise was broken:".to_owned(),
        many => format!("{many} promises were broken:"),
    };
    let broken = broken.iter().map(|what| format!("<li class=\"broken\"><span>{}</span></li>\n", escaped(what)));
    let broken: String = broken.collect();
    let row = |report: &Report| {
        let (detected, recovered) = slowest(report);
        let latency = &report.latency;
        let (word, class) = if report.broken().is_empty() { ("kept", "kept") } else { ("broken", "broken-word") };
        vec![
            html(format!("<a href=\"{}.html\">{}</a>", escaped(&report.plan), escaped(&report.title))),
            html(little(report)),
            number(grouped(report.calls.asked)),
            number(grouped(report.calls.unanswered)),
            number(format!("{} → {}", millis(latency.before.p99), millis(latency.during.p99))),
            number(detected),
            number(recovered),
            html(format!("<span class=\"{class}\">{word}</span>")),
        ]
    };
    let head = [
        text("Plan"),
        text("Calls answered, over time"),
        number("Calls"),
        number("Unanswered"),
        number("p99 before → during"),
        number("Told after"),
        number("Back after"),
        text("Promises"),
    ];
    let machine = reports.first().map_or(String::new(), |report| escaped(&report.circumstances.machine));
    let range = |of: fn(&Circumstances) -> f64| {
        let all = || reports.iter().map(|report| of(&report.circumstances));
        let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        format!("{least:.0} to {most:.0}")
    };
    let body = format!(
        "<h1>Game days</h1>\n\
         <p class=\"story\">Faults were played against clusters of containers while clients called. {verdict}</p>\n\
         <ul class=\"promises\">{broken}</ul>\n{}\
         <footer><p>{} calls a second in an open loop. {machine}. The machine was {} % busy.</p></footer>\n",
        table(&head, &reports.iter().map(row).collect::<Vec<_>>()),
        range(|it| it.per_second),
        range(|it| it.busy * 100.0)
    );
    page("Game days", &body)
}

/// Of a table. What is a number stands at the right.
struct Cell {
    html: String,
    class: &'static str,
}

fn text(text: impl AsRef<str>) -> Cell {
    html(escaped(text.as_ref()))
}

fn number(text: impl AsRef<str>) -> Cell {
    Cell { html: escaped(text.as_ref()), class: " class=\"n\"" }
}

/// As it is.
fn html(html: String) -> Cell {
    Cell { html, class: "" }
}

fn table(head: &[Cell], rows: &[Vec<Cell>]) -> String {
    let row = |tag: &str, cells: &[Cell]| {
        let cells = cells.iter().map(|Cell { html, class }| format!("<{tag}{class}>{html}</{tag}>"));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = rows.iter().map(|cells| row("td", cells)).collect();
    format!("<div class=\"sheet scroll\"><table>\n{}{rows}</table></div>\n", row("th", head))
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} · keyway</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escaped(title)
    )
}

/// The few that matter.
fn numbers(report: &Report) -> String {
    let (detected, recovered) = slowest(report);
    let (calls, keys, latency) = (&report.calls, &report.keys, &report.latency);
    let bad = |is: bool| if is { " bad" } else { "" };
    let numbers = [
        (grouped(calls.unanswered), unanswered(report), bad(calls.unanswered > 0)),
        (millis(latency.during.p99), format!("p99 during, {} before", millis(latency.before.p99)), ""),
        (seconds(Some(report.longest_silence)), "longest time without an answer to anybody".to_owned(), ""),
        (detected, "until an operator was told".to_owned(), ""),
        (recovered, "from return to HEALTHY".to_owned(), ""),
        (
            keys.out_of_step_at_the_end.to_string(),
            format!("keys out of step in the end, {} at most", keys.most_out_of_step),
            bad(keys.out_of_step_at_the_end > 0),
        ),
    ];
    let mut html = "<div class=\"numbers\">\n".to_owned();
    for (number, what, class) in numbers {
        let _ = writeln!(html, "<div class=\"number{class}\"><b>{number}</b><span>{}</span></div>", escaped(&what));
    }
    html + "</div>\n"
}

fn unanswered(report: &Report) -> String {
    let of = format!("of {} calls were not answered", grouped(report.calls.asked));
    match report.calls.asked_again {
        0 => of,
        again => format!("{of}; {} were, having asked again", grouped(again)),
    }
}

/// Of all HSMs: until it was told, and from its return until it was HEALTHY.
fn slowest(report: &Report) -> (String, String) {
    let most = |times: Vec<f64>| seconds(times.into_iter().reduce(f64::max));
    let detected = report.faults.iter().filter_map(|fault| fault.detected_after).collect();
    let of_hsms = report.faults.iter().filter_map(|fault| fault.recovered_after);
    // What befell no HSM was over when all were HEALTHY.
    let of_spans = report.spans.iter().filter(|span| of(report, span).is_empty()).filter_map(|span| span.well_after);
    (most(detected), most(of_hsms.chain(of_spans).collect()))
}

/// The HSMs that it befell.
fn of<'a>(report: &'a Report, span: &Span) -> Vec<&'a Fault> {
    report.faults.iter().filter(|fault| fault.struck == span.from).collect()
}

fn promises(report: &Report) -> String {
    let mut html = "<h2>What is promised</h2>\n<ul class=\"promises\">\n".to_owned();
    for verdict in &report.promises {
        let (class, word) = if verdict.kept { ("", "kept") } else { (" class=\"broken\"", "broken") };
        let _ = writeln!(
            html,
            "<li{class}><b>{word}</b><span>{}</span><i>{}</i></li>",
            escaped(&capital(&verdict.promise)),
            escaped(&verdict.seen)
        );
    }
    html += "</ul>\n";
    if !report.caveat.is_empty() {
        let _ =
            writeln!(html, "<p class=\"soft\" style=\"margin-top:12px\">Not promised. {}</p>", escaped(&report.caveat));
    }
    html
}

fn faults(report: &Report) -> String {
    let mut rows = Vec::new();
    for (which, span) in (1..).zip(&report.spans) {
        let begins = [text(which.to_string()), text(&span.what), number(moment(span.from))];
        let faults = of(report, span);
        if faults.is_empty() {
            let over = text(format!("over at {}", moment(span.until)));
            rows.push(begins.into_iter().chain([over, text(""), text(""), number(seconds(span.well_after))]).collect());
        }
        for fault in faults {
            let told_as = if fault.told_as.is_empty() { "HEALTHY throughout" } else { &fault.told_as };
            let back = fault.returned.map_or("never".to_owned(), |at| format!("{} at {}", fault.how, moment(at)));
            rows.push(vec![
                text(which.to_string()),
                text(format!("{} {}", fault.hsm, fault.what)),
                number(moment(fault.struck)),
                text(back),
                text(told_as),
                number(seconds(fault.detected_after)),
                number(seconds(fault.recovered_after)),
            ]);
        }
    }
    let head = [
        text(""),
        text("Fault"),
        number("At"),
        text("Its end"),
        text("Told as"),
        number("Told after"),
        number("HEALTHY after its return"),
    ];
    format!("<h2>What was done</h2>\n{}", table(&head, &rows))
}

fn latency(report: &Report) -> String {
    let row = |name: &str, of: Latency| {
        let times = [of.p50, of.p99, of.longest].map(|time| number(millis(time)));
        [text(name), number(grouped(of.calls))].into_iter().chain(times).collect()
    };
    let (head, phases) = (["Answered", "p50", "p99", "Longest"].map(number), &report.latency);
    let rows = [
        row("before anything happened", phases.before),
        row("until all was well again", phases.during),
        row("after", phases.after),
    ];
    let head: Vec<_> = [text("Due")].into_iter().chain(head).collect();
    format!("<h2>What calls took</h2>\n{}", table(&head, &rows))
}

fn refusals(report: &Report) -> String {
    let told = &report.calls.refusals;
    let row = |told: &Refusals| vec![text(&told.operation), text(&told.reason), number(grouped(told.count))];
    let body = if told.is_empty() {
        "<p>Nothing.</p>\n".to_owned()
    } else {
        let head = [text("Operation"), text("Reason"), number("Times")];
        table(&head, &told.iter().map(row).collect::<Vec<_>>())
    };
    format!("<h2>What clients were refused</h2>\n{body}")
}

fn circumstances(report: &Report) -> String {
    let it = &report.circumstances;
    format!(
        "<footer><p>{:.0} calls a second in an open loop: {MIX}; {}. \
         Shortly before, {:.0} calls a second were answered to callers without pause.</p>\n\
         <p>{} HSMs. {}. The machine was {:.0} % busy, load and daemon included.</p></footer>\n",
        it.per_second,
        escaped(&report.callers),
        it.capacity,
        report.health.len(),
        escaped(&it.machine),
        it.busy * 100.0
    )
}

/// Of the timeline.
fn moment(seconds: f64) -> String {
    format!("{seconds:.1} s")
}

fn millis(millis: f64) -> String {
    match millis {
        ..10.0 => format!("{millis:.1} ms"),
        ..1000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1e3),
    }
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("–".to_owned(), |seconds| millis(seconds * 1e3))
}

/// With a comma for each thousand.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let lead = digits.len() % 3;
    let (first, rest) = digits.split_at(lead);
    let groups = rest.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let all: Vec<_> = (!first.is_empty()).then(|| first.to_owned()).into_iter().chain(groups).collect();
    all.join(",")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_as_people_read_them() {
        assert_eq!([0, 999, 1_000, 12_345, 1_234_567].map(grouped), ["0", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!([0.34, 12.6, 1_240.0].map(millis), ["0.3 ms", "13 ms", "1.2 s"]);
        assert_eq!((seconds(None), seconds(Some(0.26))), ("–".to_owned(), "260 ms".to_owned()));
    }
}
