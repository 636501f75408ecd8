//! How many streams a client may have open here, so that one of many does not take the others' room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pulsestream_shared::problem::{Code, Problem};

use crate::filter::Audience;

/// Open streams, by client.
pub(crate) struct Doors {
    most: usize,
    open: Mutex<HashMap<Audience, usize>>,
}

/// An open stream; counted until it is dropped.
pub(crate) struct Inside {
    doors: Arc<Doors>,
    audience: Audience,
}

impl Doors {
    /// `most` streams a client.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// Lets one more in.
    ///
    /// # Errors
    /// 503 when the client has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, audience: Audience) -> Result<Inside, Problem> {
        let mut open = self.open();
        let count = open.entry(audience).or_default();
        if *count >= self.most {
            let detail =
                format!("this client has {} streams open here, the most it may", self.most);
            return Err(Problem::from(Code::Overloaded).detail(detail));
        }
        *count += 1;
        Ok(Inside { doors: self.clone(), audience })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Audience, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut open = self.doors.open();
        if let Some(count) = open.get_mut(&self.audience) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.audience);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::event::ClientId;

    use super::*;

    #[test]
    fn a_client_at_its_most_is_turned_away_alone_and_let_in_when_one_has_left() {
        let doors = Doors::new(2);
        let [me, other] = [7, 8].map(|client| Audience::Client(ClientId(client)));
        let (one, two) = (doors.enter(me), doors.enter(me));
        assert!(one.is_ok() && two.is_ok());
        let refused = doors.enter(me).map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::Overloaded);
        assert!(doors.enter(other).is_ok());
        drop(one);
        assert!(doors.enter(me).is_ok());
        drop(two);
        assert!(doors.open().is_empty());
    }
}
