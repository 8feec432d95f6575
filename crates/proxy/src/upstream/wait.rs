//! A line of tasks that wait for something another task of the same worker will give.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The line. First come, first woken.
#[derive(Debug, Default)]
pub(super) struct WaitLine {
    line: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Debug, Default)]
struct Waiter {
    called: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Leaves the line when dropped; if it was called but did not get to act, the next one is called.
struct Place<'a> {
    line: &'a WaitLine,
    waiter: Rc<Waiter>,
    served: bool,
}

impl WaitLine {
    /// Waits to be called.
    pub(super) async fn wait(&self) {
        let waiter = Rc::new(Waiter::default());
        self.line.borrow_mut().push_back(waiter.clone());
        let mut place = Place {
            line: self,
            waiter,
            served: false,
        };
        poll_fn(|cx| {
            if place.waiter.called.get() {
                return Poll::Ready(());
            }
            *place.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        place.served = true;
    }

    /// Calls the first of the line.
    pub(super) fn call_one(&self) {
        let first = self.line.borrow_mut().pop_front();
        if let Some(waiter) = first {
            waiter.call();
        }
    }

    /// Calls all.
    pub(super) fn call_all(&self) {
        let all = std::mem::take(&mut *self.line.borrow_mut());
        all.iter().for_each(|waiter| waiter.call());
    }
}

impl Waiter {
    fn call(&self) {
        self.called.set(true);
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
        if self.waiter.called.get() {
            self.line.call_one();
        } else {
            self.line
                .line
                .borrow_mut()
                .retain(|w| !Rc::ptr_eq(w, &self.waiter));
        }
    }
}
