//! How much of its memory a machine's guest writes. The machine counts for a time, by itself; then it is asked for what
//! it has counted. Who goes away meanwhile wants to know no more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use insula_models::DirtyRate;
use insula_proto::{Call, Empty, MeasureDirtyRate, Outcome};
use insula_spec::machine::DirtyRate as Counted;

use super::wanted;
use crate::containers::not_running;
use crate::containers::row::Row;
use crate::monitor::Task;
use crate::{Engine, Error, Result, blocking, tenants};

/// How much later than its time an answer may come, on a host that is very busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a machine that has not counted yet is asked again.
const AGAIN: Duration = Duration::from_millis(20);

impl Engine {
    /// What the guest of a container's machine writes in a time of [`Counted::PERIODS`].
    pub async fn container_dirty_rate(&self, reference: &str, period: Duration) -> Result<DirtyRate> {
        let container = self.find(reference)?;
        let row = container.row();
        check(&row, period)?;
        let measured = measured(Asking::begin(container.task()?, period).await, period).await;
        measured.map_err(|error| if container.row().running() { error } else { not_running(error, &row.id) })
    }

    /// The same of the machine of a tenant, with all its containers.
    pub async fn tenant_dirty_rate(&self, name: &str, period: Duration) -> Result<DirtyRate> {
        let (engine, milliseconds, name) = (self.clone(), milliseconds(period)?, name.to_owned());
        let begun = blocking(move || engine.0.tenants.measure_dirty_rate(&name, milliseconds)).await;
        measured(begun, period).await
    }
}

/// That a container has a machine whose memory is its own.
fn check(row: &Row, period: Duration) -> Result<()> {
    milliseconds(period)?;
    let isolation = row.host.isolation.as_str();
    if let Some(tenant) = tenants::of(isolation) {
        return Err(Error::InvalidArgument(format!(
            "container {} shares the machine of tenant {tenant}, which is measured as a whole (insula vm-dirty-rate \
             --tenant {tenant})",
            row.name
        )));
    }
    if !wanted(isolation) {
        return Err(Error::Unsupported(format!(
            "container {} has no machine of its own, whose memory could be watched: it runs behind the process wall",
            row.name
        )));
    }
    Ok(())
}

fn milliseconds(period: Duration) -> Result<u32> {
    let (least, most) = (Counted::PERIODS.start(), Counted::PERIODS.end());
    u32::try_from(period.as_millis()).ok().filter(|_| Counted::PERIODS.contains(&period)).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "a dirty rate is measured for {} ms to {} s, not for {} ms",
            least.as_millis(),
            most.as_secs(),
            period.as_millis()
        ))
    })
}

/// A machine that counts for somebody; one that is dropped wants to know no more.
pub(crate) trait Counting: Sized {
    /// What was counted; none before the time is over.
    async fn look(self) -> Result<(Self, Option<Counted>)>;
}

async fn measured(begun: Result<impl Counting>, period: Duration) -> Result<DirtyRate> {
    let mut counting = begun?;
    tokio::time::sleep(period).await;
    let late = Instant::now() + PATIENCE;
    while Instant::now() < late {
        let (same, counted) = counting.look().await?;
        if let Some(counted) = counted {
            return Ok(describe(&counted));
        }
        counting = same;
        tokio::time::sleep(AGAIN).await;
    }
    Err(Error::Unavailable(format!(
        "the machine has not said what it has counted {} s after its time",
        PATIENCE.as_secs()
    )))
}

/// Asks the monitor of a container.
struct Asking {
    task: Arc<Task>,
    told: bool,
}

impl Asking {
    async fn begin(task: Arc<Task>, period: Duration) -> Result<Self> {
        let call = Call::MeasureDirtyRate(MeasureDirtyRate { milliseconds: milliseconds(period)? });
        // Who goes away before the answer has asked as well. Who is refused has not: somebody else is measuring.
        let mut asking = Self { task, told: false };
        let begun = asking.task.call(call, &[]).await;
        asking.told = begun.is_err();
        begun.map(|_| asking)
    }
}

impl Counting for Asking {
    async fn look(mut self) -> Result<(Self, Option<Counted>)> {
        let counted: Option<Counted> = match self.task.call(Call::DirtyRate(Empty {}), &[]).await? {
            Outcome::DirtyRate(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::Internal(format!("the monitor's dirty rate: {error}")))?,
            other => {
                return Err(Error::Internal(format!("the monitor answered a dirty rate with {other:?}")));
            }
        };
        self.told = counted.is_some();
        Ok((self, counted))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // Whoever has asked has gone away. Without a runtime the daemon ends, and the machine's own time is short.
        if !self.told
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let task = Arc::clone(&self.task);
            runtime.spawn(async move {
                let no_more = Call::MeasureDirtyRate(MeasureDirtyRate { milliseconds: 0 });
                // One that has ended counts nothing.
                let _ = task.call(no_more, &[]).await;
            });
        }
    }
}

fn describe(counted: &Counted) -> DirtyRate {
    let bytes = counted.pages.saturating_mul(Counted::PAGE);
    let microseconds = counted.microseconds.max(1);
    let each_second = |number: u64| {
        let rate = u128::from(number) * 1_000_000 / u128::from(microseconds);
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    DirtyRate {
        backend: counted.backend.name().to_owned(),
        memory: counted.memory,
        milliseconds: microseconds.div_ceil(1000),
        pages: counted.pages,
        bytes,
        pages_per_second: each_second(counted.pages),
        bytes_per_second: each_second(bytes),
        sampled: counted.sampled,
    }
}

#[cfg(test)]
mod tests {
    use insula_spec::machine::Backend;

    use super::*;

    #[test]
    fn rates_are_of_a_second() {
        let counted = Counted {
            backend: Backend::Kvm,
            memory: 1 << 30,
            pages: 300,
            microseconds: 250_500,
            sampled: false,
        };
        let rate = describe(&counted);
        assert_eq!((rate.pages, rate.bytes, rate.milliseconds), (300, 1_228_800, 251));
        assert_eq!((rate.pages_per_second, rate.bytes_per_second), (1197, 4_905_389));
        let broken = Counted { pages: u64::MAX, microseconds: 0, ..counted };
        assert_eq!(describe(&broken).bytes_per_second, u64::MAX);
    }

    #[test]
    fn times_are_bounded() {
        for (given, taken) in [(99, None), (100, Some(100)), (60_000, Some(60_000)), (60_001, None)] {
            assert_eq!(milliseconds(Duration::from_millis(given)).ok(), taken, "{given}");
        }
        assert!(milliseconds(Duration::MAX).is_err());
    }

    /// Has counted when it was asked twice.
    struct Late(u32);

    impl Counting for Late {
        async fn look(self) -> Result<(Self, Option<Counted>)> {
            let counted = || Counted {
                backend: Backend::Qemu,
                memory: 4096,
                pages: 1,
                microseconds: 1_000_000,
                sampled: true,
            };
            Ok((Self(self.0 + 1), (self.0 > 0).then(counted)))
        }
    }

    #[tokio::test]
    async fn one_that_is_late_is_asked_again() {
        let rate = measured(Ok(Late(0)), Duration::from_millis(100)).await.unwrap();
        assert!(rate.sampled && rate.backend == "qemu" && rate.pages == 1);
        let failed: Result<Late> = Err(Error::Unavailable("no".to_owned()));
        assert!(measured(failed, Duration::ZERO).await.is_err());
    }
}
