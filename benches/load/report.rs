//! What was measured, as Markdown: ratios first, since they are what carries over to other machines.

use std::fmt::Write as _;

use crate::arguments::Arguments;
use crate::plan::{Cell, Rounds, Transport, What};
use crate::shared::spread::Spread;
use crate::window::Measured;

pub fn markdown(cells: &[Cell], arguments: &Arguments, rounds: &Rounds, machine: &str) -> String {
    let mut text = format!("AES-256-GCM, 1 KiB. {machine}.\n");
    let _ = writeln!(
        text,
        "keyway dev with {} nodes of {} sessions. Medians of {} interleaved rounds of {} s, least to most in brackets.\n",
        arguments.nodes,
        arguments.pool_size,
        rounds.count,
        rounds.length.as_secs()
    );
    let others = Spread::of(cells.iter().flat_map(|cell| cell.disturbed.iter().copied()));
    let _ = writeln!(
        text,
        "Other processes took {:.0} % of the machine meanwhile ({:.0}–{:.0}).\n",
        others.median * 100.0,
        others.least * 100.0,
        others.most * 100.0
    );
    for (number, binary) in arguments.beside.iter().enumerate() {
        let _ = writeln!(text, "keyway {}: {}\n", number + 2, binary.display());
    }
    ratios(&mut text, cells);
    absolutes(&mut text, cells);
    text
}

fn ratios(text: &mut String, cells: &[Cell]) {
    text.push_str("| | transport | clients | of the echo | of PKCS#11 alone | of single calls |\n");
    text.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for cell in cells {
        let (transport, clients, single) = match cell.what {
            What::Keyway(_, transport, clients) => (transport, clients, None),
            What::Pipeline(daemon, transport, clients) => {
                (transport, clients, find(cells, What::Keyway(daemon, transport, clients)))
            }
            What::Pkcs11 { .. } | What::Echo(..) => continue,
        };
        // One client keeps one session busy; more can use all there is.
        let threads = clients.min(2);
        let echo = find(cells, What::Echo(transport, clients));
        let alone = find(cells, What::Pkcs11 { threads });
        let _ = writeln!(
            text,
            "| {} | {} | {clients} | {} | {} | {} |",
            name(cell.what),
            transport_name(cell.what),
            ratio(cell, echo),
            ratio(cell, alone),
            ratio(cell, single)
        );
    }
    text.push('\n');
}

fn absolutes(text: &mut String, cells: &[Cell]) {
    text.push_str("| | transport | clients | op/s | p50 µs | p99 µs | server CPU µs/op |\n");
    text.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for cell in cells {
        let at_once = match cell.what {
            What::Pkcs11 { threads } => format!("{threads} threads"),
            What::Echo(_, clients) | What::Keyway(_, _, clients) | What::Pipeline(_, _, clients) => clients.to_string(),
        };
        let rate = Spread::of(cell.measured.iter().map(|it| it.per_second));
        let _ = writeln!(
            text,
            "| {} | {} | {at_once} | {:.0} ({:.0}–{:.0}) | {:.0} | {:.0} | {:.1} |",
            name(cell.what),
            transport_name(cell.what),
            rate.median,
            rate.least,
            rate.most,
            median(cell, |it| it.median_us),
            median(cell, |it| it.slowest_percent_us),
            median(cell, |it| it.cpu_us),
        );
    }
}

/// Round by round, since what disturbed one of a round probably disturbed the other.
fn ratio(cell: &Cell, other: Option<&Cell>) -> String {
    let Some(other) = other else {
        return String::new();
    };
    let pairs = cell.measured.iter().zip(&other.measured);
    let ratio = Spread::of(pairs.map(|(this, that)| this.per_second / that.per_second));
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.least, ratio.most)
}

fn find(cells: &[Cell], what: What) -> Option<&Cell> {
    cells.iter().find(|cell| cell.what == what)
}

fn name(what: What) -> String {
    match what {
        What::Pkcs11 { .. } => "PKCS#11 alone".to_owned(),
        What::Echo(..) => "echo".to_owned(),
        What::Keyway(0, ..) => "keyway".to_owned(),
        What::Keyway(daemon, ..) => format!("keyway {}", daemon + 1),
        What::Pipeline(0, ..) => "keyway, Pipeline".to_owned(),
        What::Pipeline(daemon, ..) => format!("keyway {}, Pipeline", daemon + 1),
    }
}

fn transport_name(what: What) -> &'static str {
    match what {
        What::Pkcs11 { .. } => "none",
        What::Echo(transport, _) | What::Keyway(_, transport, _) | What::Pipeline(_, transport, _) => match transport {
            Transport::Tcp => "TCP",
            Transport::Unix => "Unix socket",
        },
    }
}

fn median(cell: &Cell, of: impl Fn(&Measured) -> f64) -> f64 {
    Spread::of(cell.measured.iter().map(of)).median
}
