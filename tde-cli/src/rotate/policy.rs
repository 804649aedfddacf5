//! What is due: pure, from what keyrings say and the time.

use super::config::Policy;

const DAY: f64 = 86_400.0;

/// Whether a key has to be replaced, and why or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Due(String),
    /// It stays as it is.
    Leave(String),
}

/// What has an age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aged {
    DataKey(u32),
    MasterKey(u32),
}

impl Aged {
    /// What a policy says of a key that was made `created` seconds after 1970, `None` if the policy does not ask for it.
    pub(crate) fn judge(self, policy: &Policy, created: f64, now: f64) -> Option<Verdict> {
        let (limit, what) = match self {
            Self::DataKey(version) => (policy.data_keys?, format!("key version {version}")),
            Self::MasterKey(version) => (policy.master_key?, format!("master-key version {version}")),
        };
        let age = ((now - created) / DAY).max(0.0);
        let text = format!("{what} is {} old, limit {}", days(age), days(limit));
        Some(if age >= limit { Verdict::Due(text) } else { Verdict::Leave(text) })
    }
}

/// `90 days`, `0.5 days`.
fn days(days: f64) -> String {
    let text = if days >= 10.0 || days.fract() == 0.0 { format!("{days:.0}") } else { format!("{days:.1}") };
    format!("{text} {}", if text == "1" { "day" } else { "days" })
}

/// What a server has to be set to so that its jobs rewrite at most `mib` MiB a second: pages of 8 KiB between two pauses, and the
/// pause in milliseconds. A job is slower than that, because its work takes time too.
pub(crate) fn throttle(mib: f64) -> (i32, f64) {
    // A pause below a millisecond is not kept to.
    let pages = if mib > 500.0 { 2048 } else { 128 };
    (pages, (f64::from(pages) / 128.0 * 1000.0 / mib * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_due_at_its_limit() {
        let policy = Policy { data_keys: Some(90.0), ..Policy::default() };
        let judge = |days: f64| Aged::DataKey(3).judge(&policy, 1e9, 1e9 + days * DAY);
        assert_eq!(judge(90.0), Some(Verdict::Due("key version 3 is 90 days old, limit 90 days".into())));
        assert_eq!(judge(1.25), Some(Verdict::Leave("key version 3 is 1.2 days old, limit 90 days".into())));
        assert_eq!(Aged::MasterKey(1).judge(&policy, 0.0, 1e9), None, "nobody asks for it");
        // A clock that went back makes a key young, not due.
        assert!(matches!(judge(-5.0), Some(Verdict::Leave(_))));
    }

    #[test]
    fn a_throttle_is_a_number_of_pages_and_a_pause() {
        for mib in [0.1, 1.0, 7.0, 20.0, 1000.0, 10_000.0] {
            let (pages, pause) = throttle(mib);
            let rate = f64::from(pages) / 128.0 / (pause / 1000.0);
            assert!((rate / mib - 1.0).abs() < 0.01, "{mib}: {pages} pages, {pause} ms");
            assert!((1.0..=10_000.0).contains(&pause), "{pause} ms");
        }
    }
}
