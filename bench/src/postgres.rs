//! Copies of a loaded PostgreSQL: an image with its data directory in it, each copy pristine. How many
//! answer their first query in a second.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::peer::Images;
use crate::report::{OURS, ratio};
use crate::worker::execute;

const AT_ONCE: usize = 8;

/// Starts the server, asks until it answers, and ends it at once: it is a copy.
const QUERY: &str = "#!/bin/sh
bin=/usr/lib/postgresql/15/bin
$bin/postgres -D /data -c listen_addresses= -k /tmp >/dev/null 2>&1 & server=$!
until $bin/psql -h /tmp -Atqc 'select count(*) from numbers' postgres 2>/dev/null; do :; done
kill -QUIT $server; wait $server || true
";

/// Makes the data directory: a cluster with a table of 100,000 rows.
const LOAD: &str = "set -e
mkdir /data && chown postgres /data && printf '%s' \"$1\" >/query && chmod 755 /query
cat >/load <<'END'
set -e
bin=/usr/lib/postgresql/15/bin
$bin/initdb -D /data >/dev/null
$bin/pg_ctl -D /data -o '-c listen_addresses= -k /tmp' -l /dev/null -w -s start
$bin/psql -h /tmp -qc 'create table numbers as select generate_series(1, 100000) as n' postgres
$bin/pg_ctl -D /data -w -s stop
END
su postgres -s /bin/sh /load";

/// A copy without any engine, of the root file system `$3`: what no engine can do with less. Nothing of it
/// is synced, as with insula's `--rm`. `$1` is a folder, `$2` a
/// name in it.
const BARE: &str = "set -e
copy=$1/$2
mkdir \"$copy\" \"$copy/upper\" \"$copy/work\" \"$copy/root\"
unshare --mount sh -ec 'mount -t overlay -o \"lowerdir=$2,upperdir=$1/upper,workdir=$1/work,volatile\" overlay \"$1/root\"
mount --rbind /dev \"$1/root/dev\"
chroot --userspec=postgres \"$1/root\" /query' sh \"$copy\" \"$3\"
rm -r \"$copy\"
";

/// Copies a second of each peer, and of the host without any container.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    rates: Vec<(String, f64)>,
    bare: Option<f64>,
}

impl Copies {
    /// Loads the image, and has an engine run its copies: so many if it is ours, so many if not.
    pub(crate) fn measure(
        &mut self,
        name: &str,
        engine: &mut dyn Images,
        [ours, others]: [usize; 2],
    ) -> anyhow::Result<()> {
        let archive = system()?;
        engine.output(&["import", &archive.display().to_string(), "pg-system"])?;
        engine.output(&["run", "--name", "pg-load", "pg-system", "sh", "-c", LOAD, "sh", QUERY])?;
        engine.output(&["commit", "pg-load", "pg"])?;
        engine.output(&["rm", "pg-load"])?;
        let words = ["run", "--rm", "--network", "none", "--user", "postgres", "pg", "/query"];
        // One to warm up.
        let answer = engine.output(&words)?;
        ensure!(answer == "100000", "the copy answers {answer:?}");
        let count = if name == OURS { ours } else { others };
        let time = engine.each(count, AT_ONCE, &words)?;
        self.rates.push((name.to_owned(), count as f64 / time.as_secs_f64()));
        if name == OURS {
            self.bare = Some(bare(engine, count).context("copies without an engine")?);
        }
        engine.output(&["rmi", "pg", "pg-system"]).map(drop)
    }
}

/// Copies a second without an engine; the root file system is that of the image.
fn bare(engine: &mut dyn Images, count: usize) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(engine.folder()).context("make a folder")?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    engine.output(&["create", "--name", "pg-bare", "pg"])?;
    engine.output(&["export", "-o", &at("root.tar"), "pg-bare"])?;
    engine.output(&["rm", "pg-bare"])?;
    let unpack = "mkdir \"$1\" \"$2\" && tar -x -C \"$2\" -f \"$3\"";
    let (copies, root) = (at("copies"), at("root"));
    execute(&["sh", "-c", unpack, "sh", &copies, &root, &at("root.tar")].map(str::to_owned))?.time()?;
    let script = "seq 1 \"$1\" | xargs -P \"$2\" -I{} sh -c \"$3\" sh \"$4\" {} \"$5\"";
    let (number, at_once) = (count.to_string(), AT_ONCE.to_string());
    let words = ["sh", "-c", script, "sh", &number, &at_once, BARE, &copies, &root].map(str::to_owned);
    Ok(count as f64 / execute(&words)?.time()?.as_secs_f64())
}

/// A Debian with PostgreSQL, made once and kept: the same that the tests make.
fn system() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fixtures");
    let path = folder.join("debian-postgresql-15.tar");
    if !path.exists() {
        std::fs::create_dir_all(&folder).context("make a folder for fixtures")?;
        let partial = folder.join("bench-postgresql.partial.tar");
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", "--include=postgresql-15", "bookworm"]).arg(&partial);
        ensure!(command.status().context("run mmdebstrap")?.success(), "mmdebstrap failed");
        std::fs::rename(&partial, &path).context("keep a fixture")?;
    }
    path.canonicalize().context("a fixture's path")
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((_, ours)) = self.rates.iter().find(|(name, _)| name == OURS) else { return Ok(()) };
        writeln!(f, "\n## Pristine copies of a loaded PostgreSQL, {AT_ONCE} at a time\n")?;
        writeln!(f, "From the command to the answer of the first query and the end of the copy.\n")?;
        writeln!(f, "| | copies a second | insula is |\n| --- | ---: | --- |")?;
        for (name, rate) in &self.rates {
            let beside = if name == OURS { String::new() } else { ratio(*ours, *rate) };
            writeln!(f, "| {name} | {rate:.1} | {beside} |")?;
        }
        if let Some(bare) = self.bare {
            writeln!(f, "| chroot on an overlay, no engine | {bare:.1} | {} |", ratio(*ours, bare))?;
            writeln!(
                f,
                "\nThe last row is what PostgreSQL and the kernel take by themselves, without any engine: what is better than it is the host between two measurements."
            )?;
        }
        Ok(())
    }
}
