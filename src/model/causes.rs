//! What a person reads of an error.

use std::error::Error;

/// An error with its causes, the outermost first.
pub fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the records cannot be reached")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn an_error_is_told_from_what_failed_to_why() {
        let error = Outer("x".parse::<u8>().unwrap_err());
        assert_eq!(with_causes(&error), "the records cannot be reached: invalid digit found in string");
        assert_eq!(with_causes(&error.0), "invalid digit found in string");
    }
}
