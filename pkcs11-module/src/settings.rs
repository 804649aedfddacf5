//! Which HSMs the module shows.

use std::env;
use std::fs;

use hsm_engine::SoftUri;

/// URIs of HSMs, separated by blanks or line ends; before everything else.
const VARIABLE: &str = "TDE_PKCS11_HSM";
/// What other parts of tde use. It may name a PKCS#11 token, this module's even: then it is not for us.
const COMMON: &str = "TDE_HSM";
/// Names a configuration file.
const FILE_VARIABLE: &str = "TDE_PKCS11_CONF";
/// The configuration file if none is named: URIs of HSMs, one a line; `#` begins a comment.
const FILE: &str = "/etc/tde/pkcs11.conf";
/// Most slots.
const MAX_SLOTS: usize = 64;

/// The HSMs, in the order of their slots. What is no URI is left out: a missing slot is noticed, while a module that does not
/// load breaks every program that has it configured.
pub(crate) fn hsms() -> Vec<SoftUri> {
    for name in [VARIABLE, COMMON] {
        let found = env::var(name).map(|text| parse(&text.replace(' ', "\n"))).unwrap_or_default();
        if !found.is_empty() {
            return found;
        }
    }
    let file = env::var_os(FILE_VARIABLE).unwrap_or_else(|| FILE.into());
    parse(&fs::read_to_string(file).unwrap_or_default())
}

fn parse(text: &str) -> Vec<SoftUri> {
    let uri = |line: &str| line.split('#').next().and_then(|line| line.trim().parse().ok());
    text.lines().filter_map(uri).take(MAX_SLOTS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_slots_and_comments_are_none() {
        let found = parse("# mine\nsoft:/a\n\n  soft:/b?user=x # second\npkcs11:token=y\n");
        let dirs: Vec<_> =
            found.iter().map(|uri| (uri.dir.display().to_string(), uri.user.as_str())).collect();
        assert_eq!(dirs, [("/a".into(), "user"), ("/b".into(), "x")]);
        assert!(parse("").is_empty());
    }
}
