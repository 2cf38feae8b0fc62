//! What was measured of one peer in one scenario.

use std::time::Duration;

/// Milliseconds, or how much was done.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, time: Duration) {
        self.push_number(time.as_secs_f64() * 1000.0);
    }

    pub(crate) fn push_number(&mut self, number: f64) {
        self.0.push(number);
    }

    /// What lies at a part of the sorted samples: 0.5 is the median.
    pub(crate) fn at(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
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
        let samples = Samples(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(samples.at(0.0), Some(1.0));
        assert_eq!(samples.at(0.5), Some(2.5));
        assert_eq!(samples.at(1.0), Some(4.0));
        assert_eq!(Samples::default().at(0.5), None);
    }
}
