//! What a reader must know of the machine to compare figures.

use std::fmt;
use std::fs;
use std::process::Command;

use serde::Serialize;

/// A machine and what was built on it.
#[derive(Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    extensions: Vec<String>,
    memory_gib: u64,
    system: String,
    compiler: String,
    revision: String,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let known = ["aes", "pclmulqdq", "avx2", "avx512f", "vaes", "vpclmulqdq"];
        let extensions = known.iter().filter(|flag| flags.split(' ').any(|f| f == **flag));
        let kib: u64 = fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| text.lines().next()?.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default();
        let system = rustix::system::uname();
        Self {
            processor: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            extensions: extensions.map(|flag| (*flag).to_owned()).collect(),
            memory_gib: kib.div_ceil(1 << 20),
            system: format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
            compiler: output("rustc", &["--version"]),
            revision: output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]),
        }
    }

    /// For a file name.
    pub(crate) fn slug(&self) -> String {
        let plain = self.processor.replace("(R)", "").replace("(TM)", "");
        let words = plain.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.take(4).collect::<Vec<_>>().join("-").to_lowercase()
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |error| format!("unknown ({program}: {error})"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores seen ({}), {} GiB; {}; {}; revision {}",
            self.processor,
            self.cores,
            self.extensions.join(" "),
            self.memory_gib,
            self.system,
            self.compiler,
            self.revision
        )
    }
}
