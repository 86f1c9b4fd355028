//! What the operator decides about who may do what.

/// Who may do everything, until policies come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Names that client certificates map to; at least one.
    pub admins: Vec<String>,
}
