//! What users may set about the rules, with the defaults. Each rule with thresholds declares them in
//! its own file with [`thresholds!`] and has its name in `rules!` here.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::{budget_exceeded::Budget, targets::Targets};
use crate::{
    cli::parse_duration,
    config::nearest,
    sink::{parse_size, units},
};

/// A share of something, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let share = f64::deserialize(from)?;
        if !(0.0..=1.0).contains(&share) {
            return Err(de::Error::custom(format!(
                "{share} is no share: use a number from 0 to 1"
            )));
        }
        Ok(Share(share))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A length of time in nanoseconds, written as on the command line: `"200ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u64);

impl Time {
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let time = parse_duration(text)?;
        Ok(Time(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Time::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", units::duration(self.0))
    }
}

/// A size in bytes, written as on the command line: `"512MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        parse_size(&text).map(Size).map_err(de::Error::custom)
    }
}

/// A threshold as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Its key in the config file.
    pub key: &'static str,
    pub value: String,
    pub default: String,
    /// What it decides.
    pub about: &'static [&'static str],
}

/// Declares a struct `Thresholds`: fields with documentation, which `explain` prints, and default.
macro_rules! thresholds {
    ($( $(#[doc = $about:literal])+ $key:ident: $type:ty = $default:expr, )+) => {
        /// What users may set about this rule.
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Thresholds {
            $( $(#[doc = $about])+ pub $key: $type, )+
        }

        impl Thresholds {
            pub const DEFAULT: Self = Thresholds { $( $key: $default, )+ };

            pub fn list(&self) -> Vec<$crate::detect::settings::Threshold> {
                vec![$( $crate::detect::settings::Threshold {
                    key: stringify!($key),
                    value: self.$key.to_string(),
                    default: Self::DEFAULT.$key.to_string(),
                    about: &[$( $about ),+],
                }, )+]
            }
        }

        impl Default for Thresholds {
            fn default() -> Self {
                Self::DEFAULT
            }
        }
    };
}
pub(super) use thresholds;

macro_rules! rules {
    ($( $rule:ident, )+) => {
        /// Thresholds by rule; the rules that are not here have none to set.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Rules {
            $( pub $rule: super::$rule::Thresholds, )+
        }

        impl Rules {
            pub const DEFAULT: Self = Rules { $( $rule: super::$rule::Thresholds::DEFAULT, )+ };

            /// Every rule that has thresholds, with those in effect.
            pub fn list(&self) -> Vec<(&'static str, Vec<Threshold>)> {
                vec![$( (stringify!($rule), self.$rule.list()), )+]
            }
        }
    };
}

rules! {
    budget_exceeded,
    cache_misses,
    chatty,
    connection_churn,
    cpu_bound,
    error_storm,
    gpu_wait,
    idle_in_transaction,
    memory_growth,
    n_plus_one,
    network_wait,
    pool_saturation,
    retransmits,
    run_queue,
    sleep_poll,
    slow_statement,
    statement_errors,
    syscall_storm,
    target_missed,
}

/// What holds for the findings of every rule.
pub mod general {
    use super::Share;

    thresholds! {
        /// A finding whose fix saves less than this share of the wall time is not said, unless it is
        /// worth something else than time (errors, misses, segments sent again) or a target is missed.
        min_gain: Share = Share(0.01),
        /// Windows a finding may be missing before it counts as resolved: a bottleneck near its
        /// threshold comes and goes.
        resolved_after: u32 = 3,
    }
}

/// Name of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName(pub &'static str);

impl<'de> Deserialize<'de> for RuleName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let known = super::RULES.iter().find(|rule| rule.name == name);
        known.map(|rule| RuleName(rule.name)).ok_or_else(|| {
            let names = super::RULES.iter().map(|rule| rule.name);
            de::Error::custom(format!(
                "no rule is called `{name}`{}",
                nearest(&name, names)
            ))
        })
    }
}

/// All that is set about the rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub general: general::Thresholds,
    pub rules: Rules,
    pub targets: Targets,
    pub budget: Budget,
    /// Rules that are not applied.
    pub off: Vec<RuleName>,
}

/// The defaults, for whoever has nothing set.
pub static DEFAULTS: Settings = Settings {
    general: general::Thresholds::DEFAULT,
    rules: Rules::DEFAULT,
    targets: Targets::NONE,
    budget: Budget::NONE,
    off: Vec::new(),
};
