//! What one worker owns. Nothing of it is shared with another thread, so nothing is locked.

use super::Shared;
use super::timers::Timers;
use crate::access_log::LogBuffers;
use crate::http::filters::jwt::KeySets;
use crate::http::headers::HeaderBlock;
use crate::listener::Listeners;
use crate::stats::{Page, Scope};
use crate::upstream::Clusters;
use crate::upstream::sweep::Sweeper;
use lateen_proxy_config::route::{Route, RouteTable};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Size of the buffer that all reads of a worker go to.
pub(crate) const SCRATCH: usize = 256 * 1024;
/// What one read of a message takes of it at most: what a slow receiver does not take has to be kept.
pub(crate) const PIECE: usize = 64 * 1024;
/// Header blocks kept for the next request, and the largest that is kept.
const SPARE_BLOCKS: usize = 512;
const SPARE_BLOCK_BYTES: usize = 8 * 1024;

/// One worker.
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    /// What was just read. Borrowed within one poll, never across a wait.
    pub scratch: RefCell<Box<[u8]>>,
    /// A head being written. Borrowed within one poll, never across a wait.
    pub out: RefCell<Vec<u8>>,
    pub timers: Rc<Timers>,
    pub draining: Cell<bool>,
    pub clusters: Clusters,
    pub sweeper: Sweeper,
    pub listeners: Listeners,
    pub logs: LogBuffers,
    routes: RefCell<HashMap<Arc<str>, Rc<RouteCell>>>,
    pages: RefCell<HashMap<Scope, Arc<Page>>>,
    /// Of routes that count apart, by number.
    route_pages: RefCell<Vec<Option<Arc<Page>>>>,
    blocks: RefCell<Vec<HeaderBlock>>,
    random: RefCell<SmallRng>,
    date: RefCell<(u64, String)>,
    next_connection: Cell<u64>,
    /// Keys of tokens that were fetched.
    pub key_sets: KeySets,
    /// Copies of requests under way to mirrors.
    pub mirrored: Cell<u32>,
}

/// A route table as one worker counts its users. The count inside the `Arc` belongs to all workers;
/// to raise it per request would have them fight over one cache line.
pub(crate) struct RouteView {
    pub table: Arc<RouteTable>,
}

/// Where the newest route table of a name stands. A request takes the table once.
#[derive(Default)]
#[allow(
    clippy::redundant_allocation,
    reason = "the outer count is this worker's own, see `get`"
)]
pub(crate) struct RouteCell {
    table: RefCell<Option<Rc<RouteView>>>,
}

impl RouteCell {
    pub(crate) fn of(table: Arc<RouteTable>) -> Rc<RouteCell> {
        Rc::new(RouteCell {
            table: RefCell::new(Some(Rc::new(RouteView { table }))),
        })
    }

    /// The table as it is now.
    pub(crate) fn get(&self) -> Option<Rc<RouteView>> {
        self.table.borrow().clone()
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Worker> {
        Rc::new(Worker {
            shared,
            scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            out: RefCell::default(),
            timers: Rc::new(Timers::new()),
            draining: Cell::new(false),
            clusters: Clusters::default(),
            sweeper: Sweeper::default(),
            listeners: Listeners::default(),
            logs: LogBuffers::default(),
            routes: RefCell::default(),
            pages: RefCell::default(),
            route_pages: RefCell::default(),
            blocks: RefCell::default(),
            random: RefCell::new(SmallRng::from_os_rng()),
            date: RefCell::default(),
            next_connection: Cell::new(1),
            key_sets: KeySets::default(),
            mirrored: Cell::new(0),
        })
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    /// An empty header block, with memory of an earlier request if there is one.
    pub(crate) fn block(&self) -> HeaderBlock {
        self.blocks.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a block back for the next request.
    pub(crate) fn recycle(&self, mut block: HeaderBlock) {
        let mut blocks = self.blocks.borrow_mut();
        if blocks.len() < SPARE_BLOCKS && block.capacity() <= SPARE_BLOCK_BYTES {
            block.clear();
            blocks.push(block);
        }
    }

    /// This worker's page of a scope.
    pub(crate) fn page(&self, scope: Scope) -> Arc<Page> {
        let mut pages = self.pages.borrow_mut();
        pages
            .entry(scope.clone())
            .or_insert_with(|| self.shared.stats.page(scope))
            .clone()
    }

    /// Counts on this worker's page of a route, if the route counts apart.
    pub(crate) fn count_route(&self, route: &Route, count: impl FnOnce(&Page)) {
        let Some(stat) = &route.stat else {
            return;
        };
        let scope = || Scope::Route(stat.host.clone(), stat.prefix.clone());
        let number = *stat
            .number
            .get_or_init(|| self.shared.stats.number(&scope()));
        let mut pages = self.route_pages.borrow_mut();
        let at = number as usize;
        if pages.len() <= at {
            pages.resize_with(at + 1, || None);
        }
        if let Some(page) = pages.get_mut(at) {
            count(page.get_or_insert_with(|| self.shared.stats.page(scope())));
        }
    }

    pub(crate) fn forget_page(&self, scope: &Scope) {
        self.pages.borrow_mut().remove(scope);
    }

    /// The cell of a discovered route table, filled or not.
    pub(crate) fn route_cell(&self, name: &Arc<str>) -> Rc<RouteCell> {
        self.routes
            .borrow_mut()
            .entry(name.clone())
            .or_default()
            .clone()
    }

    pub(crate) fn set_routes(&self, table: Arc<RouteTable>) {
        let cell = self.route_cell(&table.name);
        *cell.table.borrow_mut() = Some(Rc::new(RouteView { table }));
    }

    pub(crate) fn remove_routes(&self, name: &Arc<str>) {
        let mut routes = self.routes.borrow_mut();
        if let Some(cell) = routes.get(name) {
            *cell.table.borrow_mut() = None;
            // Listeners that still name the table keep the cell, and get the next table by it.
            if Rc::strong_count(cell) == 1 {
                routes.remove(name);
            }
        }
    }

    pub(crate) fn connection_id(&self) -> u64 {
        let id = self.next_connection.get();
        self.next_connection.set(id.wrapping_add(1));
        id
    }

    /// Appends the value of a `date` header; made once a second.
    pub(crate) fn with_date<R>(&self, now: Instant, read: impl FnOnce(&[u8]) -> R) -> R {
        // `now` only decides whether a second may have passed; the text comes from the wall clock.
        let tick = self.timers.millis(now) / 500 + 1;
        let mut date = self.date.borrow_mut();
        if date.0 != tick {
            let seconds = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs());
            *date = (tick, imf_fixdate(seconds));
        }
        read(date.1.as_bytes())
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
fn imf_fixdate(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let days = seconds / 86_400;
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Civil date from days since 1970, in years that begin in March.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 2
    } else {
        shifted - 10
    } as usize;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    let (weekday, month) = (DAYS[(days % 7) as usize], MONTHS[month]);
    format!("{weekday}, {day:02} {month} {year} {h:02}:{m:02}:{s:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_http_wants_them() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
        ] {
            assert_eq!(imf_fixdate(seconds), text);
        }
    }
}
