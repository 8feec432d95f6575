//! The part of the corpus that continuous integration runs, and the list of kept differences.

use lateen_differ::accepted::Ledger;
use lateen_differ::corpus::Corpus;
use lateen_differ::run::{self, Selection};
use lateen_differ::world::{Binaries, corpus_directory};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_proxy_does_what_stock_envoy_does() {
    let binaries = match Binaries::find() {
        Ok(binaries) => binaries,
        Err(missing) => {
            lateen_testkit::tools::skip("our_proxy_does_what_stock_envoy_does", missing);
            return;
        }
    };
    let quick = Selection {
        quick: true,
        ..Selection::default()
    };
    let report = run::run(&corpus_directory(), &binaries, &quick).await;
    let report = report.unwrap();
    assert!(report.passes(), "{}", report.to_text());
}

#[test]
fn the_corpus_has_at_least_400_cases_and_no_name_twice() {
    let cases = Corpus::read(&corpus_directory()).unwrap().cases().unwrap();
    assert!(cases.len() >= 400, "{}", cases.len());
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn every_kept_difference_is_explained_in_the_documentation() {
    let ledger = Ledger::read(&corpus_directory()).unwrap();
    let path = corpus_directory().join("../../../docs/differences.md");
    let text = std::fs::read_to_string(path).unwrap();
    let headings: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("### "))
        .collect();
    let names: Vec<&str> = ledger.all.iter().map(|kept| kept.name.as_str()).collect();
    assert_eq!(
        headings, names,
        "docs/differences.md has one heading `### NAME` for each entry of accepted.yaml, in order"
    );
    for kept in &ledger.all {
        let section = text.split(&format!("### {}\n", kept.name)).nth(1);
        let section = section.unwrap().split("\n### ").next().unwrap();
        for case in &kept.cases {
            assert!(
                section.contains(&format!("`{case}`")),
                "{}: {case}",
                kept.name
            );
        }
    }
}
