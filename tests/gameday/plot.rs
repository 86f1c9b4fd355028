//! The timeline as a picture: what callers got, what it took, how each HSM was told, and what was wrong when.

use std::fmt::Write as _;

use super::report::{Bin, Report};
use super::traffic::DEADLINE;

const WIDTH: f64 = 1000.0;
/// Room for what stands left of the plots, and right of them.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 14.0;
/// Above all plots: the marks of faults.
const TOP: f64 = 26.0;
const RATE_HEIGHT: f64 = 120.0;
const LATENCY_HEIGHT: f64 = 130.0;
const DRIFT_HEIGHT: f64 = 56.0;
const BAND: f64 = 15.0;
/// Between plots, with the title of the next.
const GAP: f64 = 44.0;
/// Latencies from a tenth of a millisecond to ten seconds, a power of ten each.
const DECADES: std::ops::RangeInclusive<i32> = -1..=4;

/// A part of the picture: where it begins, and how high it is.
#[derive(Clone, Copy)]
struct Panel {
    top: f64,
    height: f64,
}

impl Panel {
    /// Where a share of the height is, from the bottom.
    fn at(self, share: f64) -> f64 {
        self.top + self.height * (1.0 - share.clamp(0.0, 1.0))
    }

    fn bottom(self) -> f64 {
        self.top + self.height
    }
}

/// The whole picture, as it stands in a page.
pub fn timeline(report: &Report) -> String {
    let rate = Panel { top: TOP + 18.0, height: RATE_HEIGHT };
    let latency = Panel { top: rate.bottom() + GAP, height: LATENCY_HEIGHT };
    let health = Panel { top: latency.bottom() + GAP, height: report.health.len() as f64 * (BAND + 5.0) };
    let drift = Panel { top: health.bottom() + GAP, height: DRIFT_HEIGHT };
    let time = Time { length: report.length };
    let height = drift.bottom() + 34.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"Timeline of {}\">\n",
        escaped(&report.title)
    );
    svg += &seconds(&time, rate.top, drift.bottom());
    svg += &faults(report, &time, rate.top, drift.bottom());
    svg += &rates(report, &time, rate);
    svg += &latencies(report, &time, latency);
    svg += &bands(report, &time, health);
    svg += &out_of_step(report, &time, drift);
    svg + "</svg>\n"
}

/// The same in little, for a list: what was answered and refused, and the faults.
pub fn little(report: &Report) -> String {
    let (width, height) = (220.0, 36.0);
    let most = report.over_time.iter().map(|bin| bin.answered + bin.refused).fold(1.0, f64::max);
    let x = |seconds: f64| seconds / report.length * width;
    let y = |rate: f64| height - rate / most * (height - 2.0);
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" style=\"width:{width}px\" aria-hidden=\"true\">");
    for span in &report.spans {
        let (from, wide) = (x(span.from), x(span.until - span.from).max(1.0));
        let _ = write!(svg, "<rect class=\"fault\" x=\"{from:.1}\" y=\"0\" width=\"{wide:.1}\" height=\"{height}\"/>");
    }
    svg += &area(whole(report), x, y, height);
    svg += &refused(report, x, y, height);
    svg + "</svg>"
}

struct Time {
    length: f64,
}

impl Time {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds.clamp(0.0, self.length) / self.length * (WIDTH - LEFT - RIGHT)
    }

    /// The steps between lines: ten of them at most.
    fn step(&self) -> f64 {
        let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];
        steps.into_iter().find(|step| self.length / step <= 14.0).unwrap_or(120.0)
    }
}

fn seconds(time: &Time, top: f64, bottom: f64) -> String {
    let mut svg = String::new();
    let mut at = 0.0;
    while at <= time.length {
        let x = time.x(at);
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0} s</text>", bottom + 18.0);
        at += time.step();
    }
    svg
}

/// Each a mark with its number in the table, and what it covers.
fn faults(report: &Report, time: &Time, top: f64, bottom: f64) -> String {
    let mut svg = String::new();
    for (number, span) in (1..).zip(&report.spans) {
        let (from, until) = (time.x(span.from), time.x(span.until));
        let (wide, high, middle) = ((until - from).max(1.5), bottom - top, f64::midpoint(from, until));
        let what = escaped(&span.what);
        let _ = writeln!(
            svg,
            "<g><title>{what}: {:.1} s to {:.1} s</title>\
             <rect class=\"fault\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\"/>\
             <line class=\"edge\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>\
             <line class=\"edge\" x1=\"{until:.1}\" x2=\"{until:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>",
            span.from, span.until
        );
        // In words where they fit, which may be beyond its end.
        let (long, next) = (what.len() as f64 * 6.8, report.spans.get(number).map_or(report.length, |next| next.from));
        let (label, x, anchor) = match () {
            () if long < wide => (what, middle, "middle"),
            () if long < time.x(next) - from => (what, from, "start"),
            () => (number.to_string(), middle, "middle"),
        };
        let _ = writeln!(svg, "<text class=\"mark\" x=\"{x:.1}\" y=\"14\" text-anchor=\"{anchor}\">{label}</text></g>");
    }
    svg
}

fn rates(report: &Report, time: &Time, panel: Panel) -> String {
    let most = whole(report).iter().map(|bin| bin.answered + bin.refused).fold(1.0, f64::max);
    let top = (most * 1.1 / 20.0).ceil() * 20.0;
    let mut svg = title(panel, "Calls a second", &[("answered", "key-answered"), ("refused", "key-refused")]);
    for share in [0.0, 0.5, 1.0] {
        svg += &level(panel, share, &format!("{:.0}", top * share));
    }
    let (x, y) = (|seconds| time.x(seconds), |rate: f64| panel.at(rate / top));
    svg += &area(whole(report), x, y, panel.bottom());
    svg + &refused(report, x, y, panel.bottom())
}

/// But for the last bin, whose time was not over.
fn whole(report: &Report) -> &[Bin] {
    &report.over_time[..report.over_time.len().saturating_sub(1)]
}

fn width(bins: &[Bin]) -> f64 {
    bins.get(1).map_or(0.0, |second| second.from - bins[0].from)
}

fn middle(bins: &[Bin], bin: &Bin) -> f64 {
    bin.from + width(bins) / 2.0
}

fn area(bins: &[Bin], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64, bottom: f64) -> String {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return String::new() };
    let points: Vec<_> = bins.iter().map(|bin| format!("{:.1},{:.1}", x(middle(bins, bin)), y(bin.answered))).collect();
    let line = points.join(" L");
    format!(
        "<path class=\"below\" d=\"M{:.1},{bottom:.1} L{line} L{:.1},{bottom:.1} Z\"/>\
         <path class=\"answered\" d=\"M{line}\"/>\n",
        x(middle(bins, first)),
        x(middle(bins, last))
    )
}

fn refused(report: &Report, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64, bottom: f64) -> String {
    let (mut svg, bins) = (String::new(), &report.over_time);
    for bin in bins.iter().filter(|bin| bin.refused > 0.0) {
        let (left, right) = (x(bin.from), x(report.length.min(bin.from + width(bins) * 0.85)));
        // Few are seen as well.
        let top = y(bin.refused).min(bottom - 2.0);
        let _ = writeln!(
            svg,
            "<rect class=\"refused\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>{:.1} s: {:.0} a second were not answered</title></rect>",
            right - left,
            bottom - top,
            bin.from,
            bin.refused
        );
    }
    svg
}

fn latencies(report: &Report, time: &Time, panel: Panel) -> String {
    let mut svg = title(panel, "Latency, from when a call was due", &[("p50", "key-p50"), ("p99", "key-p99")]);
    let decades = f64::from(DECADES.end() - DECADES.start());
    let share = |millis: f64| (millis.log10() - f64::from(*DECADES.start())) / decades;
    for decade in DECADES {
        let label = match decade {
            ..0 => "0.1 ms".to_owned(),
            0..3 => format!("{} ms", 10_i32.pow(decade.unsigned_abs())),
            3.. => format!("{} s", 10_i32.pow(decade.unsigned_abs() - 3)),
        };
        svg += &level(panel, share(10_f64.powi(decade)), &label);
    }
    let deadline = panel.at(share(DEADLINE.as_secs_f64() * 1e3));
    let _ = writeln!(
        svg,
        "<line class=\"deadline\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{deadline:.1}\" y2=\"{deadline:.1}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">deadline</text>",
        WIDTH - RIGHT,
        WIDTH - RIGHT,
        deadline - 4.0
    );
    for (class, of) in [("p99", (|bin| bin.p99) as fn(&Bin) -> f64), ("p50", |bin| bin.p50)] {
        let mut path = String::new();
        let mut pen = "M";
        for bin in whole(report) {
            // Where nothing was answered there is no line.
            if of(bin) <= 0.0 {
                pen = "M";
                continue;
            }
            let x = time.x(middle(&report.over_time, bin));
            let _ = write!(path, "{pen}{x:.1},{:.1} ", panel.at(share(of(bin))));
            pen = "L";
        }
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
    }
    svg
}

fn bands(report: &Report, time: &Time, panel: Panel) -> String {
    let mut told: Vec<&str> =
        report.health.iter().flat_map(|hsm| &hsm.bands).map(|band| band.health.as_str()).collect();
    told.sort_unstable();
    told.dedup();
    let shown = |health: &str| health.to_lowercase().replace('_', " ");
    let classes: Vec<_> = told.iter().map(|health| (shown(health), class(health))).collect();
    let key: Vec<_> = classes.iter().map(|(name, class)| (name.as_str(), class.as_str())).collect();
    let mut svg = title(panel, "Health of each HSM, as its operator is told", &key);
    for (row, hsm) in report.health.iter().enumerate() {
        let y = panel.top + row as f64 * (BAND + 5.0) + 3.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} {}</text>",
            LEFT - 8.0,
            y + BAND - 3.0,
            escaped(&hsm.hsm),
            escaped(
                hsm.zone
                    .rsplit_once('-')
                    .map_or(hsm.zone.as_str(), |(_, zone)| zone.trim_start_matches(char::is_numeric))
            )
        );
        for band in &hsm.bands {
            let (x, wide) = (time.x(band.from), (time.x(band.until) - time.x(band.from)).max(1.0));
            let _ = writeln!(
                svg,
                "<rect class=\"{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{BAND}\">\
                 <title>{} {}, {:.1} s to {:.1} s</title></rect>",
                class(&band.health),
                escaped(&hsm.hsm),
                escaped(&band.health),
                band.from,
                band.until
            );
        }
    }
    svg
}

fn class(health: &str) -> String {
    health.replace(' ', "_")
}

fn out_of_step(report: &Report, time: &Time, panel: Panel) -> String {
    let most = report.keys.most_out_of_step.max(1) as f64;
    let mut svg = title(panel, "Keys out of step with the records", &[]);
    svg += &level(panel, 0.0, "0");
    svg += &level(panel, 1.0, &format!("{most:.0}"));
    let mut path = String::new();
    let mut last = 0.0;
    for (at, count) in report.keys.out_of_step.iter().filter(|(at, _)| *at <= report.length) {
        let (x, y) = (time.x(*at), panel.at(*count as f64 / most));
        // In steps: between two looks nobody knows.
        let _ = if path.is_empty() {
            write!(path, "M{x:.1},{y:.1}")
        } else {
            write!(path, " L{x:.1},{last:.1} L{x:.1},{y:.1}")
        };
        last = y;
    }
    svg + &format!("<path class=\"drift\" d=\"{path}\"/>\n")
}

/// A line across, with what it stands for.
fn level(panel: Panel, share: f64, label: &str) -> String {
    let (y, right, text) = (panel.at(share), WIDTH - RIGHT, LEFT - 8.0);
    format!(
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text x=\"{text:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
        y + 4.0
    )
}

/// What a panel shows, and in which colours.
fn title(panel: Panel, text: &str, key: &[(&str, &str)]) -> String {
    let y = panel.top - 12.0;
    let mut svg = format!("<text class=\"title\" x=\"{LEFT}\" y=\"{y:.1}\">{text}</text>\n");
    let mut x = LEFT + text.len() as f64 * 7.4 + 22.0;
    for (name, class) in key {
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{name}</text>",
            y - 9.0,
            x + 15.0
        );
        x += 34.0 + name.len() as f64 * 6.8;
    }
    svg
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
