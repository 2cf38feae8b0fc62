//! Streams that go on when the daemon that told them has ended: the next one is asked for what comes
//! after the last that was shown.

use std::time::Duration;

use insula_client::{Address, Client, Error};

use crate::printer;

/// Between two looks whether there is a daemon again.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after which it is said what is waited for.
const SAID_AFTER: u32 = 20;
/// Looks after which nobody is waited for any more: a minute.
const LOOKS: u32 = 600;

/// What of a stream was shown. What is in it has times, which never go back unless the clock is set back;
/// asked for what is `since` some time, a daemon tells everything from the first that is as late on.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The latest time that was shown.
    latest: Option<jiff::Timestamp>,
    /// What was shown from the first of that time on.
    behind: u64,
    /// What is still to come of that, told again.
    again: u64,
}

impl Place {
    /// Whether the next one was not shown yet. It counts as shown from now on.
    pub(crate) fn passes(&mut self, time: jiff::Timestamp) -> bool {
        let later = self.latest.is_none_or(|latest| time > latest);
        // A later one is new, even when what was to come again is not there any more.
        if !later && self.again > 0 {
            self.again -= 1;
            return false;
        }
        self.again = 0;
        if later {
            (self.latest, self.behind) = (Some(time), 0);
        }
        self.behind += 1;
        true
    }

    /// From when on to ask again; `None` when nothing was shown.
    pub(crate) fn resume(&mut self) -> Option<jiff::Timestamp> {
        self.again = self.behind;
        self.latest
    }
}

/// Whether an error means that the daemon has ended, or is about to.
pub(crate) fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Connect { .. } | Error::Connection { .. } | Error::Daemon { status: 503, .. })
}

/// The next daemon, once it answers.
pub(crate) async fn next_daemon(address: &Address) -> anyhow::Result<Client> {
    for look in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        match answering(address).await {
            Err(error) if is_lost(&error) => {}
            other => return Ok(other?),
        }
        if look == SAID_AFTER {
            printer::notice(&format!("the daemon at {address} has ended: waiting for the next one"));
        }
    }
    anyhow::bail!("the daemon at {address} has ended, and no other one has come")
}

async fn answering(address: &Address) -> Result<Client, Error> {
    let client = Client::connect(address.clone()).await?;
    client.ping().await?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(place: &mut Place, seconds: &[i64]) -> Vec<i64> {
        let at = |second: &i64| jiff::Timestamp::from_second(*second).unwrap();
        seconds.iter().copied().filter(|second| place.passes(at(second))).collect()
    }

    /// What a daemon tells that is asked again: from the first that is as late on.
    fn resumed(place: &mut Place, log: &[i64]) -> Vec<i64> {
        let since = place.resume().unwrap().as_second();
        let told: Vec<i64> = log.iter().copied().skip_while(|second| *second < since).collect();
        shown(place, &told)
    }

    #[test]
    fn nothing_is_shown_twice_and_nothing_is_left_out() {
        for log in [vec![1, 2, 3, 4, 5, 6], vec![1, 1, 1, 2, 2, 2], vec![5, 6, 1, 2, 2, 6, 7]] {
            for first in 1..log.len() {
                for second in first..log.len() {
                    let mut place = Place::default();
                    let mut all = shown(&mut place, &log[..first]);
                    all.extend(resumed(&mut place, &log[..second]));
                    all.extend(resumed(&mut place, &log));
                    assert_eq!(all, log, "cut at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn what_is_gone_by_then_hides_nothing() {
        let mut place = Place::default();
        shown(&mut place, &[1, 2, 2]);
        assert_eq!(resumed(&mut place, &[3, 3, 4]), [3, 3, 4]);
    }
}
