//! Wrappers that make a port fail as told, around an engine that works.
//!
//! The case that matters most is [`Fault::After`]: the call happened, and the caller is told that it
//! failed. Retries must survive exactly that. Without a script each wrapper is as good as its engine and
//! passes the port's conformance suite.
//!
//! ```text
//! let faults = Faults::default();
//! let log = FaultLog::new(engine, faults.clone());
//! faults.next(Method::Append, 2, Fault::After);      // two appends happen and are reported as unknown
//! faults.next(Method::Append, 1, Fault::HangBefore); // the third hangs until faults.release()
//! ```

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

mod bus;
mod cache;
mod letters;
mod log;
mod store;

pub use bus::FaultBus;
pub use cache::FaultCache;
pub use letters::FaultLetters;
pub use log::{FaultIdentity, FaultLog};
pub use store::{FaultKeyStore, FaultQuery, FaultStore};

/// The methods of all ports that can be told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named after the method it stands for")]
pub enum Method {
    Append,
    Consume,
    Read,
    Bounds,
    Locate,
    ConsumerNext,
    Committed,
    Identity,
    Renew,
    Write,
    Progress,
    Place,
    Maintain,
    QueryEvents,
    QueryEvent,
    QueryDevices,
    QueryDevice,
    QuerySeries,
    QuerySnapshot,
    QueryLetters,
    FindKey,
    CreateKey,
    ListKeys,
    RevokeStoredKey,
    ExpireKey,
    KeyChanges,
    KnownClients,
    Pepper,
    NewestLetters,
    WalkLetters,
    CountLetters,
    MarkReplayed,
    Purge,
    Lock,
    Settle,
    Key,
    PutKey,
    RevokeKey,
    Charge,
    Publish,
    Subscribe,
    SubscriptionNext,
}

/// What goes wrong with a call.
#[derive(Clone)]
pub enum Fault {
    /// It fails and nothing happened.
    Before,
    /// It happens, and the caller is told that it failed.
    After,
    /// It waits for [`Faults::release`], then happens.
    HangBefore,
    /// It happens; the answer waits for [`Faults::release`].
    HangAfter,
    /// This is run first and says how to go on.
    Run(Arc<dyn Fn() -> BoxFuture<'static, Verdict> + Send + Sync>),
}

impl Fault {
    /// [`Fault::Run`] of a closure that awaits.
    pub fn run<F, Fut>(closure: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Verdict> + Send + 'static,
    {
        Self::Run(Arc::new(move || Box::pin(closure())))
    }
}

/// How a call goes on after [`Fault::Run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As if there were no fault.
    Pass,
    /// As [`Fault::Before`].
    FailBefore,
    /// As [`Fault::After`].
    FailAfter,
}

/// When an injected failure struck: whether the call happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Struck {
    Before,
    After,
}

impl Struck {
    fn text(self) -> String {
        match self {
            Self::Before => "injected before the call".to_owned(),
            Self::After => "injected after the call".to_owned(),
        }
    }
}

/// The script that any number of wrappers share. Clones are handles to the same script.
#[derive(Clone)]
pub struct Faults(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Counts releases: a hanging call waits for one more than it saw when it began.
    releases: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    planned: HashMap<Method, VecDeque<(usize, Fault)>>,
    calls: HashMap<Method, usize>,
    hanging: usize,
}

impl Default for Faults {
    fn default() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), releases: watch::Sender::new(0) }))
    }
}

impl Faults {
    /// Appends to the script: the next `times` calls of `method`, after those already planned.
    pub fn next(&self, method: Method, times: usize, fault: Fault) {
        if times > 0 {
            self.state().planned.entry(method).or_default().push_back((times, fault));
        }
    }

    /// Forgets what is planned and lets every hanging call go on.
    pub fn clear(&self) {
        self.state().planned.clear();
        self.release();
    }

    /// Lets every call that hangs now go on.
    pub fn release(&self) {
        self.0.releases.send_modify(|releases| *releases += 1);
    }

    /// How often the method was called, through whatever wrapper.
    pub fn calls(&self, method: Method) -> usize {
        self.state().calls.get(&method).copied().unwrap_or(0)
    }

    /// How many calls hang now.
    pub fn hanging(&self) -> usize {
        self.state().hanging
    }

    /// Takes the next fault of the method and counts the call.
    fn take(&self, method: Method) -> Option<Fault> {
        let mut state = self.state();
        *state.calls.entry(method).or_default() += 1;
        let planned = state.planned.get_mut(&method)?;
        let (times, fault) = planned.front_mut()?;
        let fault = fault.clone();
        *times -= 1;
        if *times == 0 {
            planned.pop_front();
        }
        Some(fault)
    }

    /// Makes a call under the script; `fail` gives the answer of a failed one.
    pub(crate) async fn around<T>(
        &self,
        method: Method,
        call: impl Future<Output = T>,
        fail: impl FnOnce(Struck) -> T,
    ) -> T {
        let verdict = match self.take(method) {
            None => Verdict::Pass,
            Some(Fault::Before) => Verdict::FailBefore,
            Some(Fault::After) => Verdict::FailAfter,
            Some(Fault::HangBefore) => {
                self.hang().await;
                Verdict::Pass
            }
            Some(Fault::HangAfter) => {
                let answer = call.await;
                self.hang().await;
                return answer;
            }
            Some(Fault::Run(closure)) => closure().await,
        };
        match verdict {
            Verdict::Pass => call.await,
            Verdict::FailBefore => fail(Struck::Before),
            Verdict::FailAfter => {
                call.await;
                fail(Struck::After)
            }
        }
    }

    /// What the script says before a cancel-safe wait: the caller does the rest. A wait that is given up
    /// while it hangs has used its fault up. `HangAfter` is taken as `HangBefore`: a taken event must not
    /// be held where dropping the wait would lose it.
    pub(crate) async fn interrupt(&self, method: Method) -> Option<Struck> {
        let verdict = match self.take(method)? {
            Fault::Before => Verdict::FailBefore,
            Fault::After => Verdict::FailAfter,
            Fault::HangBefore | Fault::HangAfter => {
                self.hang().await;
                Verdict::Pass
            }
            Fault::Run(closure) => closure().await,
        };
        match verdict {
            Verdict::Pass => None,
            Verdict::FailBefore => Some(Struck::Before),
            Verdict::FailAfter => Some(Struck::After),
        }
    }

    async fn hang(&self) {
        let mut releases = self.0.releases.subscribe();
        let seen = *releases.borrow_and_update();
        let _hanging = Hanging::new(&self.0);
        let released = releases.wait_for(|releases| *releases > seen).await;
        debug_assert!(released.is_ok(), "the sender lives in self");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a hanging call for as long as it hangs, also when it is dropped.
struct Hanging<'a>(&'a Shared);

impl<'a> Hanging<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state().hanging += 1;
        Self(shared)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.state().hanging -= 1;
    }
}

#[cfg(test)]
mod tests;
