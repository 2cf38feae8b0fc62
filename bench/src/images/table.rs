//! What was seen, as a part of RESULTS.md.

use std::fmt;

use super::{COREUTILS, SKOPEO, Seen, Shape, Step};
use crate::report::{OURS, ratio};

const MIB: f64 = (1 << 20) as f64;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rounds == 0 {
            return Ok(());
        }
        writeln!(f, "\n# Images\n")?;
        let of = match self.rounds {
            1 => "One round".to_owned(),
            rounds => format!("Medians of {rounds} rounds"),
        };
        writeln!(f, "{of}, in seconds; the time of insula, and how it is beside the others. Pulls are of")?;
        writeln!(
            f,
            "the same gzip blobs from a registry on loopback, pushes go to an empty one there. {SKOPEO}"
        )?;
        writeln!(
            f,
            "copies only: it unpacks nothing, and pushes from the archive. Files are copied (cp) from and to memory,"
        )?;
        writeln!(
            f,
            "three times each way, each time after memory was touched that a host of this machine may have taken back.\n\
             {COREUTILS}, writes the same file to the same disk outside of any container."
        )?;
        Shape::ALL.into_iter().try_for_each(|shape| self.shape(f, shape))?;
        self.costs(f)
    }
}

impl Seen {
    fn shape(&self, f: &mut fmt::Formatter<'_>, shape: Shape) -> fmt::Result {
        let layers = if shape.layers == 1 { "layer" } else { "layers" };
        writeln!(f, "\n## {} MiB in {} {layers}\n", shape.size >> 20, shape.layers)?;
        writeln!(f, "| | | seconds | insula is |\n| --- | --- | ---: | --- |")?;
        for step in Step::ALL {
            let Some(peers) = self.times.get(&(shape, step)) else { continue };
            let ours = peers.iter().find(|(name, _)| name == OURS).and_then(|(_, times)| times.at(0.5));
            for (name, times) in peers {
                let time = times.at(0.5).unwrap_or_default();
                let beside = match ours {
                    Some(ours) if name != OURS => ratio(time, ours),
                    _ => String::new(),
                };
                writeln!(f, "| {} | {name} | {:.2} | {beside} |", step.title(), time / 1000.0)?;
            }
        }
        Ok(())
    }

    fn costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## Most memory while the large image is pulled\n")?;
        writeln!(f, "Resident, of all of the engine's processes together, looked at every 10 ms.\n")?;
        writeln!(f, "| | MiB |\n| --- | ---: |")?;
        for (name, kib) in &self.peaks {
            writeln!(f, "| {name} | {:.0} |", *kib as f64 / 1024.0)?;
        }
        writeln!(f, "\n## Running containers of the large image\n")?;
        writeln!(
            f,
            "Disk of all writable layers together with all else that came with them and outlives a boot, a while after\n\
             they were started; memory of the containers' own processes (busybox sleep): resident, its share when\n\
             what is common is divided, and private.\n"
        )?;
        writeln!(f, "| | containers | disk, MiB | each, KiB | RSS, MiB | PSS, MiB | private, MiB |")?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for (name, many) in &self.many {
            let mib = |kib: u64| kib as f64 / 1024.0;
            let memory = many.memory;
            writeln!(
                f,
                "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
                many.count,
                many.disk as f64 / MIB,
                many.disk as f64 / 1024.0 / many.count as f64,
                mib(memory.rss),
                mib(memory.pss),
                mib(memory.private)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::images::Many;
    use crate::images::measure::Shared;

    #[test]
    fn steps_are_beside_each_other() {
        let mut seen = Seen { rounds: 1, ..Seen::default() };
        for (name, seconds) in [(OURS, 2), ("docker", 6)] {
            seen.push((Shape::LARGE, Step::Load), name, Duration::from_secs(seconds));
        }
        seen.peak("docker", 2048);
        seen.peak("docker", 1024);
        let memory = Shared { rss: 1024, pss: 512, private: 256 };
        seen.many.push(("docker".to_owned(), Many { count: 100, disk: 5 << 20, memory }));
        let text = seen.to_string();
        assert!(text.contains("| load | docker | 6.00 | 3.0 × faster |"), "{text}");
        assert!(
            text.contains("| docker | 2 |")
                && text.contains("| docker | 100 | 5.0 | 51.2 | 1.0 | 0.5 | 0.2 |"),
            "{text}"
        );
        assert_eq!(Seen::default().to_string(), "");
    }
}
