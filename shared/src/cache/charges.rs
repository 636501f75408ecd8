//! The debts of shared limits, in a process that shares them with nobody.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::Charge;
use crate::bucket::{Bucket, Debt, Rate};

/// A bounded table of debts. At the bound those that drained are forgotten first; a limit that finds no
/// room then is answered as if it were new.
pub(super) struct Charges {
    most: usize,
    origin: Instant,
    table: Mutex<HashMap<Box<str>, (Rate, Bucket)>>,
}

impl Charges {
    pub(super) fn new(most: usize) -> Self {
        Self { most, origin: Instant::now(), table: Mutex::default() }
    }

    pub(super) fn add(&self, charge: &Charge) -> Debt {
        let now_ns = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.contains_key(&charge.limit);
        if !known && table.len() >= self.most {
            table.retain(|_, (rate, bucket)| !bucket.is_empty(*rate, now_ns));
        }
        if !known && table.len() >= self.most {
            return Bucket::default().charge(charge.events, charge.rate, now_ns);
        }
        let (rate, bucket) =
            table.entry(charge.limit.clone()).or_insert((charge.rate, Bucket::default()));
        *rate = charge.rate;
        bucket.charge(charge.events, charge.rate, now_ns)
    }
}
