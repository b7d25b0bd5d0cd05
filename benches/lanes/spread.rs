//! What several rounds gave.

use serde::{Deserialize, Serialize};

/// Median, least and greatest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of nothing. Of an even count the median is the mean of the middle two.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Spread {
            median: middle,
            min,
            max,
        })
    }

    pub fn median_of(values: impl IntoIterator<Item = f64>) -> Option<f64> {
        Spread::of(values).map(|spread| spread.median)
    }
}
