//! What was measured, as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::Arguments;
use crate::calls::Latency;
use crate::flood::{Beside, Cell, Measured, SHARE};
use crate::loss::{DURING, Loss, Round, Way};
use crate::shared::machine;
use crate::shared::spread::Spread;

pub fn heading(arguments: &Arguments) -> String {
    format!(
        "AES-256-GCM, 1 KiB, encryptions and decryptions in turn. {}.\n\n\
         keyway dev with 3 nodes of {} sessions; the load is on the same machine. Open loops: what a call took counts \
         from when it was due. Each call has a deadline of {} ms. Medians of {} interleaved rounds, least to most in \
         brackets; times in milliseconds.\n",
        machine::describe("SoftHSM2"),
        arguments.pool_size,
        arguments.deadline_ms,
        arguments.rounds(),
    )
}

pub fn of_loss(rounds: &[Round], arguments: &Arguments) -> String {
    let mut text = String::from("## One HSM of three is lost\n\n");
    let capacity = Spread::of(rounds.iter().map(|round| round.capacity));
    let _ = writeln!(
        text,
        "With one HSM drained {} clients got {} answers a second; then three HSMs get half as many calls. Before: {} s; \
         during: the {} s from the loss on; after: the {} s from then on.\n",
        arguments.clients,
        whole(capacity),
        arguments.length().as_secs(),
        DURING.as_secs(),
        arguments.length().as_secs(),
    );
    text.push_str(
        "| lost by | calls | refused | before p50 | p99 | during p50 | p99 | longest | after p50 | p99 | longest |\n",
    );
    text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for way in Way::ALL {
        let losses: Vec<_> = rounds.iter().flat_map(|round| &round.losses).filter(|loss| loss.way == way).collect();
        if losses.is_empty() {
            continue;
        }
        let told = |of: fn(&Loss) -> f64| fine(Spread::of(losses.iter().map(|loss| of(loss))));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            way_name(way),
            losses.iter().map(|loss| loss.calls).sum::<usize>(),
            losses.iter().flat_map(|loss| loss.refused.values()).sum::<usize>(),
            told(|loss| loss.before.median),
            told(|loss| loss.before.slowest_percent),
            told(|loss| loss.during.median),
            told(|loss| loss.during.slowest_percent),
            told(|loss| loss.during.longest),
            told(|loss| loss.after.median),
            told(|loss| loss.after.slowest_percent),
            told(|loss| loss.after.longest),
        );
    }
    let losses = || rounds.iter().flat_map(|round| &round.losses);
    tell_of_others(&mut text, losses().map(|loss| loss.others));
    list_refusals(&mut text, losses().map(|loss| (way_name(loss.way), &loss.refused, loss.others)));
    text
}

pub fn of_flood(measured: &Measured, arguments: &Arguments) -> String {
    let mut text = String::from("## Another caller's bad ciphertexts\n\n");
    let _ = writeln!(
        text,
        "{} clients got {:.0} answers a second of three HSMs. The victim sends {:.0} calls a second over the Unix socket, \
         the other caller {} over TCP, under the same key. Elsewhere: to a bare echo that refuses them. Control: \
         ciphertexts that the daemon refuses before any HSM is asked.\n",
        arguments.clients,
        measured.capacity,
        measured.capacity * SHARE,
        arguments.flood,
    );
    text.push_str(
        "| beside the victim | its p50 | p99 | longest | p99, of the p99 alone | cores busy with keyway | refused |\n",
    );
    text.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for beside in Beside::ALL {
        let cells: Vec<_> = measured.rounds.iter().filter_map(|round| find(round, beside)).collect();
        let told = |of: fn(&Latency) -> f64| fine(Spread::of(cells.iter().map(|cell| of(&cell.victim))));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            beside_name(beside),
            told(|it| it.median),
            told(|it| it.slowest_percent),
            told(|it| it.longest),
            fine(ratio(measured, beside, Beside::Nothing)),
            fine(Spread::of(cells.iter().map(|cell| cell.cores))),
            cells.iter().flat_map(|cell| cell.victim_refused.values()).sum::<usize>(),
        );
    }
    let _ = writeln!(
        text,
        "\nOf the p99 beside calls elsewhere: the control's {}, the flood's {}. Workers replaced: {}; every HSM HEALTHY at the end.\n",
        fine(ratio(measured, Beside::Control, Beside::Elsewhere)),
        fine(ratio(measured, Beside::Flood, Beside::Elsewhere)),
        measured.replaced,
    );
    for beside in [Beside::Elsewhere, Beside::Control, Beside::Flood] {
        let mut words: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for cell in measured.rounds.iter().filter_map(|round| find(round, beside)) {
            cell.told.iter().for_each(|(told, rate)| words.entry(told).or_default().push(*rate));
        }
        for (told, rates) in words {
            let _ = writeln!(
                text,
                "- {}: {} a second were told {told}",
                beside_name(beside),
                whole(Spread::of(rates.into_iter()))
            );
        }
    }
    let cells = || measured.rounds.iter().flatten();
    tell_of_others(&mut text, cells().map(|cell| cell.others));
    list_refusals(&mut text, cells().map(|cell| (beside_name(cell.beside), &cell.victim_refused, cell.others)));
    text
}

/// Of the p99 values, round by round: what disturbed the one of a round probably disturbed the other.
fn ratio(measured: &Measured, beside: Beside, than: Beside) -> Spread {
    let ratio = |round: &Vec<Cell>| {
        let (this, that) = (find(round, beside)?, find(round, than)?);
        Some(this.victim.slowest_percent / that.victim.slowest_percent)
    };
    Spread::of(measured.rounds.iter().filter_map(ratio))
}

fn find(round: &[Cell], beside: Beside) -> Option<&Cell> {
    round.iter().find(|cell| cell.beside == beside)
}

/// What took the cores away from everything here: a number that was measured beside a build says little.
fn tell_of_others(text: &mut String, others: impl Iterator<Item = f64>) {
    let others = Spread::of(others.map(|share| share * 100.0));
    let _ = writeln!(text, "\nOther processes took {} % of the machine meanwhile.", whole(others));
}

type Refused<'a> = (&'a str, &'a BTreeMap<String, usize>, f64);

/// Every refusal that a caller saw, by where it was seen, and how much of the machine others took then.
fn list_refusals<'a>(text: &mut String, refused: impl Iterator<Item = Refused<'a>>) {
    text.push('\n');
    for (place, refused, others) in refused {
        for (words, count) in refused {
            let others = others * 100.0;
            let _ = writeln!(text, "- {place}: {count} calls were refused, {words}; others took {others:.0} %");
        }
    }
}

const fn way_name(way: Way) -> &'static str {
    match way {
        Way::NotAtAll => "nothing (for comparison)",
        Way::WorkerKilled => "`kill -9` of its worker",
        Way::WorkerStopped => "`SIGSTOP` of its worker",
        Way::TokenAway => "its token's directory moved away",
        Way::SessionsExpired => "all its sessions gone",
        Way::LibraryBlocks => "its library blocks in every call",
    }
}

const fn beside_name(beside: Beside) -> &'static str {
    match beside {
        Beside::Nothing => "nothing",
        Beside::Elsewhere => "elsewhere",
        Beside::Control => "control",
        Beside::Flood => "flood",
    }
}

fn fine(it: Spread) -> String {
    format!("{:.2} ({:.2}–{:.2})", it.median, it.least, it.most)
}

fn whole(it: Spread) -> String {
    format!("{:.0} ({:.0}–{:.0})", it.median, it.least, it.most)
}
