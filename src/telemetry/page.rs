//! The page that a scrape reads: numbers as they are at one moment, by metric and labels.
//!
//! What the same metric is told with the same labels more than once is added up: several threads, or several workers of
//! one HSM, may each have their part of it.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::count::Spread;
use super::metric::{Counter, Described, Gauge, Histogram, Kind};

/// How the page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Prometheus's own, version 0.0.4: what everybody reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Form {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Numbers of one moment.
#[derive(Debug, Default, Clone)]
pub struct Page(BTreeMap<&'static str, (Described, BTreeMap<Vec<String>, Number>)>);

#[derive(Debug, Clone, PartialEq)]
enum Number {
    Counted(u64),
    Seconds(f64),
    Level(f64),
    Spread(Box<Spread>),
}

impl Page {
    pub fn count<const N: usize>(&mut self, metric: &Counter<N>, labels: [&str; N], so_far: u64) {
        self.add(metric.0, &labels, Number::Counted(so_far));
    }

    /// As [`Page::count`], of time.
    pub fn seconds<const N: usize>(&mut self, metric: &Counter<N>, labels: [&str; N], so_far: f64) {
        self.add(metric.0, &labels, Number::Seconds(so_far));
    }

    pub fn level<const N: usize>(&mut self, metric: &Gauge<N>, labels: [&str; N], now: f64) {
        self.add(metric.0, &labels, Number::Level(now));
    }

    /// A gauge that says which of several states something is in: 1 for that one, and 0 for the others.
    pub fn state<const N: usize>(
        &mut self,
        metric: &Gauge<N>,
        labels: impl Fn(&'static str) -> [String; N],
        all: &[&'static str],
        is: &str,
    ) {
        for state in all {
            let labels = labels(state);
            self.add(metric.0, &labels, Number::Level(f64::from(u8::from(*state == is))));
        }
    }

    pub fn spread<const N: usize>(&mut self, metric: &Histogram<N>, labels: [&str; N], so_far: Spread) {
        self.add(metric.0, &labels, Number::Spread(Box::new(so_far)));
    }

    /// The text.
    pub fn written(self, form: Form) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        let written = match form {
            Form::Prometheus => prometheus_text::encode(&mut page, &registry),
            Form::OpenMetrics => text::encode(&mut page, &registry),
        };
        written.expect("a text takes what is written to it");
        page
    }

    fn add(&mut self, metric: Described, labels: &[impl AsRef<str>], number: Number) {
        let (_, numbers) = self.0.entry(metric.name).or_insert_with(|| (metric, BTreeMap::new()));
        let labels = labels.iter().map(|label| label.as_ref().to_owned()).collect();
        match (numbers.entry(labels).or_insert_with(|| number.nothing()), number) {
            (Number::Counted(sum), Number::Counted(more)) => *sum += more,
            (Number::Level(sum), Number::Level(more)) | (Number::Seconds(sum), Number::Seconds(more)) => *sum += more,
            (Number::Spread(sum), Number::Spread(more)) => sum.add(&more),
            (Number::Counted(_) | Number::Seconds(_) | Number::Level(_) | Number::Spread(_), _) => {
                unreachable!("a metric is of one kind")
            }
        }
    }
}

impl Number {
    fn nothing(&self) -> Self {
        match self {
            Self::Counted(_) => Self::Counted(0),
            Self::Seconds(_) => Self::Seconds(0.0),
            Self::Level(_) => Self::Level(0.0),
            Self::Spread(_) => Self::Spread(Box::default()),
        }
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counted(number) => encoder.encode_counter::<NoLabelSet, _, f64>(number, None),
            Self::Seconds(number) => encoder.encode_counter::<NoLabelSet, _, f64>(number, None),
            Self::Level(number) => encoder.encode_gauge(number),
            Self::Spread(spread) => {
                encoder.encode_histogram::<NoLabelSet>(spread.seconds(), spread.count(), &spread.buckets(), None)
            }
        }
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, numbers) in self.0.values() {
            // The encoder adds it to what counts.
            let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
            let help = format!("{}.", metric.help);
            let mut family = encoder.encode_descriptor(name, &help, None, metric.kind.into())?;
            for (values, number) in numbers {
                let labels: Vec<_> = metric.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                number.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter,
            Kind::Gauge => Self::Gauge,
            Kind::Histogram => Self::Histogram,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::count::Durations;
    use super::super::metric::metrics;
    use super::*;

    metrics! {
        CALLS: Counter "calls_total" ["by", "end"] "Calls";
        DEPTH: Gauge "depth" [] "How deep it is";
        TOOK: Histogram "took_seconds" ["by"] "What it took";
    }

    fn page() -> Page {
        let mut page = Page::default();
        page.count(&CALLS, ["one", "a\"b\\\n"], 2);
        page.count(&CALLS, ["one", "a\"b\\\n"], 3);
        page.level(&DEPTH, [], 1.5);
        let durations = Durations::default();
        durations.note(Duration::from_millis(3));
        page.spread(&TOOK, ["two"], durations.so_far());
        page.spread(&TOOK, ["two"], durations.so_far());
        page
    }

    #[test]
    fn what_several_have_their_part_of_is_added_up_and_labels_are_escaped() {
        let text = page().written(Form::Prometheus);
        assert!(text.contains("# HELP calls_total Calls.\n# TYPE calls_total counter\n"), "{text}");
        assert!(text.contains("calls_total{by=\"one\",end=\"a\\\"b\\\\\\n\"} 5\n"), "{text}");
        assert!(text.contains("\ndepth 1.5\n"), "{text}");
        assert!(text.contains("took_seconds_bucket{by=\"two\",le=\"0.0025\"} 0\n"), "{text}");
        assert!(text.contains("took_seconds_bucket{by=\"two\",le=\"0.005\"} 2\n"), "{text}");
        assert!(
            text.contains("took_seconds_count{by=\"two\"} 2\n")
                && text.contains("took_seconds_sum{by=\"two\"} 0.006\n")
        );
        assert_eq!(ALL.len(), 3);
    }

    #[test]
    fn openmetrics_names_a_counter_without_its_suffix_and_ends_with_its_end() {
        let text = page().written(Form::OpenMetrics);
        assert!(text.contains("# TYPE calls counter\n") && text.contains("calls_total{by=\"one\""), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn of_several_states_one_is_1() {
        let mut page = Page::default();
        page.state(&IS, |state| ["it".to_owned(), state.to_owned()], &["UP", "DOWN"], "DOWN");
        let text = page.written(Form::Prometheus);
        assert!(text.contains("is{what=\"it\",state=\"UP\"} 0") && text.contains("is{what=\"it\",state=\"DOWN\"} 1"));
    }

    const IS: Gauge<2> = Gauge(Described { name: "is", kind: Kind::Gauge, labels: &["what", "state"], help: "Is" });
}
