//! A run: every chosen case on both planes, then what differs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::accepted::Ledger;
use crate::client::{self, Seen};
use crate::compare::{self, Difference};
use crate::corpus::{Case, Content, Corpus, fits};
use crate::report::{CaseReport, Report};
use crate::statistics::{self, Counts};
use crate::upstream::Record;
use crate::world::{Binaries, LogLine, Plane, World};
use crate::{Failure, Result, outcome};

/// Cases that are under way at once.
const AT_ONCE: usize = 24;

/// What happens after the last answer (mirrored copies, closings, log lines) is over when there was
/// nothing of it for this long.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// After so many times of that, the rest is not waited for: something sends without end.
const LOOKS: usize = 40;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Patterns of whole case names; none means all.
    pub cases: Vec<String>,
    /// Only groups marked `quick`.
    pub quick: bool,
}

impl Selection {
    fn takes(&self, case: &Case) -> bool {
        let named = self.cases.is_empty()
            || self.cases.iter().any(|pattern| {
                fits(pattern, &case.name) || fits(&format!("{pattern}/*"), &case.name)
            });
        named && (!self.quick || case.quick)
    }
}

/// What one plane did with one case.
enum Did {
    Once(Seen, Duration),
    Often(Counts, usize),
}

/// Runs the chosen cases of the corpus in `directory`.
pub async fn run(directory: &Path, binaries: &Binaries, selection: &Selection) -> Result<Report> {
    let started = Instant::now();
    let corpus = Corpus::read(directory)?;
    let ledger = Ledger::read(directory)?;
    let mut cases = corpus.cases()?;
    cases.retain(|case| selection.takes(case));
    if cases.is_empty() {
        return Err(Failure(
            "no case has such a name; --list shows all".to_owned(),
        ));
    }
    let chosen = |area: &str, group: &str| {
        let prefix = format!("{area}/{group}/");
        cases.iter().any(|case| case.name.starts_with(&prefix))
    };
    let mut world = World::start(binaries, &corpus, chosen).await?;
    for case in &mut cases {
        let area = case.name.split('/').next().unwrap_or_default();
        if let Some(tokens) = world.tokens.get(area) {
            tokens.case(case);
        }
    }
    for case in &cases {
        let host = match &case.content {
            Content::Raw(_) => case_host(case),
            Content::Requests(..) => None,
        };
        let attempts = case.upstream.clone();
        world.shared.expect(&case.name, host.as_deref(), attempts);
    }
    let (apart, together): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.apart);
    let mut done = all(&world, together).await;
    for area in &corpus.areas {
        for group in area.groups.iter().filter(|group| group.apart) {
            let prefix = format!("{}/{}/", area.name, group.name);
            let its = apart.iter().filter(|case| case.name.starts_with(&prefix));
            let its: Vec<_> = its.copied().collect();
            if its.is_empty() {
                continue;
            }
            let wrong = |error: Failure| Failure(format!("{}/{}: {error}", area.name, group.name));
            let objects = world.stage(area, group).await.map_err(wrong)?;
            done.extend(all(&world, its).await);
            world.clear(&objects).await.map_err(wrong)?;
        }
    }
    let evidence = Evidence::of_all(&world).await;
    let ended = world.ended();
    let mut reports = Vec::new();
    for case in &cases {
        if let Some(did) = done.remove(&case.name) {
            reports.push(judge(case, did, &evidence, &ledger));
        }
    }
    world.stop().await;
    Ok(Report::new(reports, &ledger, ended, started.elapsed()))
}

/// The host that a raw case's own requests carry.
fn case_host(case: &Case) -> Option<String> {
    let mut parts = case.name.split('/');
    let (area, group, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{name}.{group}.{area}.test"))
}

/// Runs cases at once, then those that want to be alone.
async fn all(world: &World, cases: Vec<&Case>) -> HashMap<String, [Result<Did>; 2]> {
    let (last, first): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.alone);
    let mut done: HashMap<String, [Result<Did>; 2]> = stream::iter(first)
        .map(|case| both(world, case))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for case in last {
        let (name, did) = both(world, case).await;
        done.insert(name, did);
    }
    done
}

async fn both(world: &World, case: &Case) -> (String, [Result<Did>; 2]) {
    let [envoy, lateen] = Plane::ALL.map(|plane| on(world, case, plane));
    let (envoy, lateen) = tokio::join!(envoy, lateen);
    (case.name.clone(), [envoy, lateen])
}

async fn on(world: &World, case: &Case, plane: Plane) -> Result<Did> {
    let to = world.target(plane, case.via, case.port.as_deref())?;
    let started = Instant::now();
    let Some(many) = case.many else {
        let seen = client::run(case, to).await?;
        return Ok(Did::Once(seen, started.elapsed()));
    };
    let each = many.div_ceil(case.connections);
    let runs = (0..case.connections).map(|_| client::again(case, to, each));
    let mut counts = Counts::new();
    for answers in futures_util::future::join_all(runs).await {
        for answer in answers? {
            let who = answer["headers"]["x-app"].as_str().unwrap_or("-");
            let kind = format!("{} {who}", answer["status"]);
            *counts.entry(kind).or_default() += 1;
        }
    }
    Ok(Did::Often(counts, each * case.connections))
}

/// What upstreams and access logs say.
struct Evidence {
    records: HashMap<(Plane, String), Vec<Record>>,
    logs: [BTreeMap<String, Vec<LogLine>>; 2],
}

impl Evidence {
    /// All that there will be.
    async fn of_all(world: &World) -> Evidence {
        let mut evidence = Evidence::of(world);
        for _ in 0..LOOKS {
            let before = evidence.size();
            tokio::time::sleep(AFTERMATH).await;
            evidence = Evidence::of(world);
            if evidence.size() == before {
                break;
            }
        }
        evidence
    }

    fn size(&self) -> usize {
        let logs = self.logs.iter().flat_map(BTreeMap::values);
        self.records.values().map(Vec::len).sum::<usize>() + logs.map(Vec::len).sum::<usize>()
    }

    fn of(world: &World) -> Evidence {
        let mut records: HashMap<(Plane, String), Vec<Record>> = HashMap::new();
        for record in world.shared.records() {
            if let Some(case) = &record.case {
                let key = (record.plane, case.clone());
                records.entry(key).or_default().push(record);
            }
        }
        Evidence {
            records,
            logs: Plane::ALL.map(|plane| world.logs(plane)),
        }
    }

    /// What the upstreams saw of a case, and through which of them it went.
    fn upstream(&self, plane: Plane, case: &str) -> Vec<Value> {
        let mut records: Vec<&Record> = self
            .records
            .get(&(plane, case.to_owned()))
            .into_iter()
            .flatten()
            .collect();
        records.sort_by(|a, b| (&a.upstream, a.at).cmp(&(&b.upstream, b.at)));
        let shown = records.into_iter().map(|record| {
            let mut seen = record.seen.clone();
            seen["upstream"] = json!(record.upstream);
            seen
        });
        shown.collect()
    }

    fn log(&self, plane: Plane, client: &str) -> Vec<Value> {
        let logs = &self.logs[plane as usize];
        let lines = logs.get(client).into_iter().flatten();
        lines.map(|line| line.fields.clone()).collect()
    }
}

fn judge(case: &Case, did: [Result<Did>; 2], evidence: &Evidence, ledger: &Ledger) -> CaseReport {
    let mut report = CaseReport::new(case);
    let [envoy, lateen] = did;
    let (envoy, lateen) = match (envoy, lateen) {
        (Ok(envoy), Ok(lateen)) => (envoy, lateen),
        (Err(error), _) | (_, Err(error)) => {
            report.broken = Some(error.to_string());
            return report;
        }
    };
    let found = match (envoy, lateen) {
        (Did::Often(mut theirs, total), Did::Often(mut ours, _)) => {
            for (plane, counts) in [(Plane::Envoy, &mut theirs), (Plane::Lateen, &mut ours)] {
                for seen in evidence.upstream(plane, &case.name) {
                    let kind = format!("at {}", seen["upstream"].as_str().unwrap_or("-"));
                    *counts.entry(kind).or_default() += 1;
                }
            }
            report.outcome = json!({
                "envoy": statistics::shown(&theirs), "lateen": statistics::shown(&ours),
            });
            statistics::differences(&theirs, &ours, total)
        }
        (Did::Once(theirs, their_time), Did::Once(ours, our_time)) => {
            let theirs = outcome_of(case, Plane::Envoy, theirs, evidence);
            let ours = outcome_of(case, Plane::Lateen, ours, evidence);
            report.broken = unexpected(case, &theirs, [their_time, our_time]);
            let found = compare::differences(&theirs, &ours);
            report.outcome = json!({"envoy": theirs, "lateen": ours});
            found
        }
        _ => Vec::new(),
    };
    sort_out(&mut report, found, ledger);
    report
}

fn sort_out(report: &mut CaseReport, found: Vec<Difference>, ledger: &Ledger) {
    for difference in found {
        match ledger.find(&report.name, &difference) {
            Some(accepted) => report.accepted.push((accepted.name.clone(), difference)),
            None => report.differences.push(difference),
        }
    }
}

fn outcome_of(case: &Case, plane: Plane, seen: Seen, evidence: &Evidence) -> Value {
    let mut whole = json!({
        "answers": seen.answers,
        "connection": seen.connection,
        "upstream": evidence.upstream(plane, &case.name),
        "log": evidence.log(plane, &client::address(case).to_string()),
    });
    outcome::normalise(&mut whole, plane, case.exact);
    whole
}

/// Why a case does not show what it is meant to show, if so.
fn unexpected(case: &Case, envoy: &Value, times: [Duration; 2]) -> Option<String> {
    let answers = envoy["answers"].as_array()?;
    let statuses: Vec<u64> = answers
        .iter()
        .filter_map(|answer| answer["status"].as_u64())
        .collect();
    let expected: Vec<u64> = case.expect.iter().map(|s| u64::from(*s)).collect();
    if !expected.is_empty() && statuses != expected {
        return Some(format!("Envoy answers {statuses:?}, not {expected:?}"));
    }
    let (least, most) = case.takes?;
    let [envoy, lateen] = times.map(|time| time.as_millis() as u64);
    let fits = |time: u64| (least..=most).contains(&time);
    (!fits(envoy) || !fits(lateen)).then(|| {
        format!("takes {envoy} ms with Envoy, {lateen} ms with Lateen, not {least} to {most}")
    })
}
