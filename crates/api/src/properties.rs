//! For every input: no panic, an end, and errors that lie within the text. For every object: YAML and
//! JSON give it back.

use std::path::Path;
use std::sync::OnceLock;

use crate::fuzzing::{accepted_objects_survive, errors_lie_within};
use crate::{Mode, Object, ObjectMeta, Spec, parse};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value as Json;

fn user_documents() -> &'static [String] {
    static DOCUMENTS: OnceLock<Vec<String>> = OnceLock::new();
    DOCUMENTS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let mut texts = Vec::new();
        for directory in ["user-documents", "complete"] {
            for entry in std::fs::read_dir(root.join(directory)).unwrap() {
                texts.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
            }
        }
        texts.sort();
        texts
    })
}

/// What YAML is made of.
fn token() -> impl Strategy<Value = String> {
    const FIXED: &[&str] = &[
        "apiVersion: networking.istio.io/v1\n",
        "kind: VirtualService\n",
        "kind: Gateway\n",
        "metadata: {name: a}\n",
        "spec:\n",
        "  http:\n",
        "  - route:\n",
        "hosts: [a]",
        "---",
        "...",
        "\n",
        "\r\n",
        "\r",
        "  ",
        "\t",
        "- ",
        ": ",
        ":",
        "? ",
        "# c",
        "&a ",
        "*a",
        "<<: *a",
        "!t ",
        "!!str ",
        "|",
        ">",
        "|2-\n",
        "'",
        "\"",
        "\\",
        "\\u00",
        "{",
        "}",
        "[",
        "]",
        ",",
        "%YAML",
        "@",
        "`",
        "é",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "😀",
        "\0",
        "0x",
        "1e9",
        "~",
        "null",
    ];
    prop_oneof![
        8 => proptest::sample::select(FIXED).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => "[a-z]{1,3}",
    ]
}

fn json() -> impl Strategy<Value = Json> {
    let text = prop_oneof![
        3 => "\\PC{0,12}",
        2 => "[-:#?&*!|>'\"%@`{}\\[\\], a0.~<=\\n\\t]{0,6}",
        1 => any::<String>(),
        1 => proptest::sample::select(vec!["yes", "null", "1.0", "010", "0x1", "<<", "---", "...", "- a", "a: b", "a #b"]).prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>()
            .prop_filter("JSON has no others", |value| value.is_finite())
            .prop_map(Json::from),
        text.clone().prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Json::from),
            btree_map(text.clone(), inner, 0..4)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

/// `PROPTEST_CASES` makes it more.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: usual.cases.max(1500),
        failure_persistence: None,
        ..usual
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_text_ends_with_errors_within_it(tokens in vec(token(), 0..40)) {
        errors_lie_within(&tokens.concat());
    }

    #[test]
    fn any_bytes_end_with_errors_within_them(bytes in vec(any::<u8>(), 0..200)) {
        errors_lie_within(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_mutated_document_ends_with_errors_within_it(
        index in any::<proptest::sample::Index>(),
        changes in vec((any::<proptest::sample::Index>(), 0_usize..12, token()), 1..6),
    ) {
        let mut chars: Vec<char> = index.get(user_documents()).chars().collect();
        for (at, removed, inserted) in changes {
            let at = at.index(chars.len() + 1);
            let end = (at + removed).min(chars.len());
            chars.splice(at..end, inserted.chars());
        }
        errors_lie_within(&chars.into_iter().collect::<String>());
    }

    #[test]
    fn any_json_survives_yaml(status in json()) {
        let meta = ObjectMeta { name: "a".to_owned(), ..ObjectMeta::default() };
        let mut object = Object::new(meta, Spec::from(crate::Namespace::default()));
        object.status = Some(status);
        let yaml = object.to_yaml();
        let parsed = parse("f.yaml", &yaml, Mode::Strict);
        prop_assert!(!parsed.has_errors(), "{}", parsed.render(&yaml, false));
        prop_assert_eq!(&parsed.objects[0].object, &object, "{}", yaml);
        prop_assert_eq!(Object::from_json(&object.to_json()), Ok(object));
    }

    #[test]
    fn an_object_that_is_accepted_survives_yaml_and_json(
        index in any::<proptest::sample::Index>(),
        changes in vec((any::<proptest::sample::Index>(), any::<char>()), 0..3),
    ) {
        let mut chars: Vec<char> = index.get(user_documents()).chars().collect();
        for (at, changed) in changes {
            let at = at.index(chars.len());
            chars[at] = changed;
        }
        let text: String = chars.into_iter().collect();
        accepted_objects_survive(&text);
    }

    #[test]
    fn a_duration_that_is_written_reads_back(nanos in 0_u64..=i64::MAX as u64, unit in 0_usize..4) {
        let scale = [1, 1_000, 1_000_000, 1_000_000_000][unit];
        let duration = std::time::Duration::from_nanos(nanos / scale * scale);
        let text = crate::format_duration(duration);
        prop_assert_eq!(crate::parse_duration(&text), Ok(duration), "{}", text);
    }

    #[test]
    fn any_text_is_a_duration_or_an_error(text in "[0-9.+a-zµ-]{0,12}") {
        let _ = crate::parse_duration(&text);
    }
}
