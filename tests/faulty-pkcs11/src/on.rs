//! Which functions a rule is about: `C_Encrypt`, `C_Encrypt,C_Decrypt`, `C_Encrypt*`, `*`, `*,!C_Login`.

use std::fmt;
use std::str::FromStr;

use crate::Function;

/// A set of functions. What begins with `!` is never in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    One(Function),
    /// Every function whose name begins so.
    Beginning(String),
    Not(Function),
}

impl On {
    /// Every function.
    pub fn all() -> Self {
        Self(vec![Term::Beginning(String::new())])
    }

    pub fn except(mut self, function: Function) -> Self {
        self.0.push(Term::Not(function));
        self
    }

    pub(crate) fn matches(&self, function: Function) -> bool {
        let named = self.0.iter().any(|term| match term {
            Term::One(one) => *one == function,
            Term::Beginning(start) => function.name().starts_with(start),
            Term::Not(_) => false,
        });
        named && !self.0.contains(&Term::Not(function))
    }
}

impl From<Function> for On {
    fn from(function: Function) -> Self {
        Self(vec![Term::One(function)])
    }
}

impl<const N: usize> From<[Function; N]> for On {
    fn from(functions: [Function; N]) -> Self {
        Self(functions.into_iter().map(Term::One).collect())
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, term) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match term {
                Term::One(function) => write!(f, "{comma}{function}")?,
                Term::Beginning(start) => write!(f, "{comma}{start}*")?,
                Term::Not(function) => write!(f, "{comma}!{function}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for On {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| name.parse().map_err(|()| format!("{name} is no function of PKCS#11 2.40"));
        let term = |text: &str| match (text.strip_prefix('!'), text.strip_suffix('*')) {
            (Some(name), _) => Ok(Term::Not(named(name)?)),
            (None, Some(start)) if Function::ALL.iter().any(|function| function.name().starts_with(start)) => {
                Ok(Term::Beginning(start.to_owned()))
            }
            (None, _) => Ok(Term::One(named(text)?)),
        };
        Ok(Self(text.split(',').map(term).collect::<Result<_, String>>()?))
    }
}
