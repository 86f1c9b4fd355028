//! Where a reason is explained: on the pages that this daemon serves itself, if callers can reach them, or else in `docs/`.

use std::sync::Arc;

use tonic_types::{ErrorDetails, HelpLink};

/// Where callers find the documents. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pages(Option<Arc<str>>);

impl Pages {
    /// Under this URL's `/docs`.
    pub fn under(url: &str) -> Self {
        Self(Some(url.trim_end_matches('/').into()))
    }

    /// Where a reason, or a connection error code, is explained.
    pub(super) fn of(&self, reason: &str) -> String {
        match &self.0 {
            Some(url) => format!("{url}/docs/errors#{reason}"),
            None => format!("docs/errors.md#{reason}"),
        }
    }

    /// Has the details of an error say where its reason is explained.
    pub(super) fn put_on(&self, details: &mut ErrorDetails) {
        if let Some(reason) = details.error_info().map(|info| info.reason.clone()) {
            details.set_help(vec![HelpLink::new(format!("What {reason} means and what to do"), self.of(&reason))]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_the_daemons_own_page_if_there_is_one() {
        assert_eq!(Pages::default().of("NO_NODE"), "docs/errors.md#NO_NODE");
        assert_eq!(
            Pages::under("http://kms.example:8080/").of("NO_NODE"),
            "http://kms.example:8080/docs/errors#NO_NODE"
        );
    }
}
