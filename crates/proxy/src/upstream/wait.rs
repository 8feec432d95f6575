//! Requests that wait for a connection of one endpoint.
//!
//! Invariant: a request waits only while its endpoint has a connection with the request's key, made
//! or being made. Each of these calls somebody with that key when it has room or is gone, so nobody
//! waits for something that happens elsewhere.

use super::connect::ConnKey;
use crate::outcome::Outcome;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The line. First come, first woken, among those with the same key.
#[derive(Debug, Default)]
pub(super) struct WaitLine {
    line: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    /// What its connection has to be tied to.
    key: Option<Rc<ConnKey>>,
    called: Cell<Option<Call>>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    /// There may be room now.
    Look,
    /// The connection that was being made was not made.
    Failed(Outcome),
}

/// Leaves the line when dropped; if it was called but did not get to act, the next one is called.
struct Place<'a> {
    line: &'a WaitLine,
    waiter: Rc<Waiter>,
    served: bool,
}

impl WaitLine {
    /// Waits to be called. Who was `called` before and found nothing keeps its turn. An error is
    /// that of a connection that could not be made.
    pub(super) async fn wait(
        &self,
        key: &Option<Rc<ConnKey>>,
        called: bool,
    ) -> Result<(), Outcome> {
        let waiter = Rc::new(Waiter {
            key: key.clone(),
            called: Cell::new(None),
            waker: RefCell::default(),
        });
        match called {
            true => self.line.borrow_mut().push_front(waiter.clone()),
            false => self.line.borrow_mut().push_back(waiter.clone()),
        }
        let mut place = Place {
            line: self,
            waiter,
            served: false,
        };
        let call = poll_fn(|cx| match place.waiter.called.get() {
            Some(call) => Poll::Ready(call),
            None => {
                *place.waiter.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
        place.served = true;
        match call {
            Call::Look => Ok(()),
            Call::Failed(outcome) => Err(outcome),
        }
    }

    /// Calls the first with this key.
    pub(super) fn call_one(&self, key: &Option<Rc<ConnKey>>) {
        let mut line = self.line.borrow_mut();
        let at = line.iter().position(|waiter| waiter.key == *key);
        let first = at.and_then(|at| line.remove(at));
        drop(line);
        if let Some(waiter) = first {
            waiter.call(Call::Look);
        }
    }

    /// Calls all with this key.
    pub(super) fn call_all(&self, key: &Option<Rc<ConnKey>>) {
        self.call_each(key, Call::Look);
    }

    /// All with this key fail as the connection did that was being made, as in Envoy: it is not
    /// known whether another would be any better, and their own policies say whether to try.
    pub(super) fn fail_all(&self, key: &Option<Rc<ConnKey>>, outcome: Outcome) {
        self.call_each(key, Call::Failed(outcome));
    }

    fn call_each(&self, key: &Option<Rc<ConnKey>>, call: Call) {
        let mut line = self.line.borrow_mut();
        let all = std::mem::take(&mut *line);
        let (called, others) = all.into_iter().partition(|waiter| waiter.key == *key);
        *line = others;
        drop(line);
        let called: VecDeque<Rc<Waiter>> = called;
        called.iter().for_each(|waiter| waiter.call(call));
    }
}

impl Waiter {
    fn call(&self, call: Call) {
        self.called.set(Some(call));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        match self.waiter.called.get() {
            Some(Call::Look) => self.line.call_one(&self.waiter.key),
            Some(Call::Failed(_)) => {}
            None => {
                let mut line = self.line.line.borrow_mut();
                line.retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
            }
        }
    }
}
