//! What a metric is: its name, what kind of number it is, which labels it has.
//!
//! The kind is its type and the number of labels a part of that, so that no number is told as something else.

/// A metric as the page and the documents tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// As it is exposed, with its unit, and `_total` when it counts.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// A sentence without its full stop, which the page adds.
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the start of the process.
    Counter,
    /// Is what it is now.
    Gauge,
    /// Durations in seconds, in buckets.
    Histogram,
}

/// A metric that counts, with so many labels.
#[derive(Debug)]
pub struct Counter<const LABELS: usize>(pub(super) Described);

/// A metric that tells what is now.
#[derive(Debug)]
pub struct Gauge<const LABELS: usize>(pub(super) Described);

/// A metric of durations.
#[derive(Debug)]
pub struct Histogram<const LABELS: usize>(pub(super) Described);

/// Declares metrics, and the list of all of them.
macro_rules! metrics {
    ($($name:ident: $kind:ident $exposed:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $name: $kind<{ const LABELS: &[&str] = &[$($label),*]; LABELS.len() }> = $kind(Described {
            name: $exposed,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        });)*

        /// Every metric that there is.
        #[cfg(test)]
        pub const ALL: &[Described] = &[$($name.0),*];
    };
}

pub(super) use metrics;
