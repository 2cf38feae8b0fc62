//! Times of one peer in one scenario.

use std::time::Duration;

#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Milliseconds at a part of the sorted samples: 0.5 is the median.
    pub(crate) fn at(&self, part: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.0.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let place = part * last as f64;
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        Some(sorted[low] + (sorted[high] - sorted[low]) * place.fract())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let samples = Samples([4, 1, 3, 2].map(Duration::from_millis).to_vec());
        assert_eq!(samples.at(0.0), Some(1.0));
        assert_eq!(samples.at(0.5), Some(2.5));
        assert_eq!(samples.at(1.0), Some(4.0));
        assert_eq!(Samples::default().at(0.5), None);
    }
}
