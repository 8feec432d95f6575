//! Which routes of a virtual host can match a path, without trying all of them.
//!
//! The first route in order wins, so the index yields candidates in that order; each still has all
//! its conditions checked. Candidates come from three sorted sources merged by position: routes for
//! exactly this path, routes for any prefix of it, and the rest (regexes, CONNECT, paths where case
//! does not matter).

use super::{PathMatcher, Route};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;

/// Below this many routes trying them one by one is faster.
const LINEAR: usize = 8;

/// The index of one virtual host; [`None`] inside when it has few routes.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteIndex(Option<Box<Tables>>);

#[derive(Clone, Debug, Default)]
struct Tables {
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    prefixes: Vec<Prefix>,
    rest: Vec<u32>,
}

/// One distinct prefix. They are sorted, so that every prefix of a path that is in the list is the
/// path's predecessor in the list or one of its `shorter` chain.
#[derive(Clone, Debug)]
struct Prefix {
    text: Box<[u8]>,
    /// The longest other prefix that this one begins with.
    shorter: Option<u32>,
    routes: Vec<u32>,
}

impl RouteIndex {
    pub(crate) fn new(routes: &[Arc<Route>]) -> Self {
        if routes.len() < LINEAR {
            return Self(None);
        }
        let mut tables = Tables::default();
        let mut prefixes: HashMap<&str, Vec<u32>> = HashMap::new();
        for (position, route) in (0u32..).zip(routes) {
            match &route.matcher.path {
                PathMatcher::Exact(path) if route.matcher.case_sensitive => {
                    tables
                        .exact
                        .entry(path.as_bytes().into())
                        .or_default()
                        .push(position);
                }
                PathMatcher::Prefix(prefix) | PathMatcher::SeparatedPrefix(prefix)
                    if route.matcher.case_sensitive =>
                {
                    prefixes.entry(prefix).or_default().push(position);
                }
                _ => tables.rest.push(position),
            }
        }
        tables.prefixes = chain(prefixes);
        Self(Some(Box::new(tables)))
    }

    /// The first route, in order, of those that can match `path` for which `matches` holds.
    pub(crate) fn find<'r>(
        &self,
        routes: &'r [Arc<Route>],
        path: &[u8],
        mut matches: impl FnMut(&Route) -> bool,
    ) -> Option<&'r Arc<Route>> {
        let Some(tables) = &self.0 else {
            return routes.iter().find(|r| matches(r));
        };
        let mut sources = tables.sources(path);
        loop {
            // The source whose next route comes first.
            let next = sources
                .iter_mut()
                .filter(|s| !s.is_empty())
                .min_by_key(|s| s[0])?;
            let (first, others) = next.split_first()?;
            *next = others;
            let route = routes.get(*first as usize)?;
            if matches(route) {
                return Some(route);
            }
        }
    }
}

impl Tables {
    fn sources(&self, path: &[u8]) -> SmallVec<[&[u32]; 12]> {
        let mut sources: SmallVec<[&[u32]; 12]> = SmallVec::new();
        sources.push(&self.rest);
        if let Some(routes) = self.exact.get(path) {
            sources.push(routes);
        }
        let mut at = self
            .prefixes
            .partition_point(|p| *p.text <= *path)
            .checked_sub(1);
        while let Some(prefix) = at.and_then(|i| self.prefixes.get(i)) {
            if path.starts_with(&prefix.text) {
                sources.push(&prefix.routes);
            }
            at = prefix.shorter.map(|i| i as usize);
        }
        sources
    }
}

fn chain(prefixes: HashMap<&str, Vec<u32>>) -> Vec<Prefix> {
    let mut sorted: Vec<(&str, Vec<u32>)> = prefixes.into_iter().collect();
    sorted.sort_unstable_by_key(|(text, _)| *text);
    let mut chain: Vec<Prefix> = Vec::with_capacity(sorted.len());
    // Prefixes of the current text, shortest first; sorted order makes this a stack.
    let mut open: Vec<u32> = Vec::new();
    for (position, (text, routes)) in (0u32..).zip(sorted) {
        while let Some(last) = open.last() {
            if text.as_bytes().starts_with(&chain[*last as usize].text) {
                break;
            }
            open.pop();
        }
        chain.push(Prefix {
            text: text.as_bytes().into(),
            shorter: open.last().copied(),
            routes,
        });
        open.push(position);
    }
    chain
}
