//! What holds for any text that is given as YAML. Fuzzing and random tests look for a text for which
//! it does not.

use crate::{Kind, Mode, Object, parse};

/// Reads bytes as YAML: it ends, errors lie within the text, and objects survive being written.
pub fn yaml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    errors_lie_within(&text);
    accepted_objects_survive(&text);
}

/// Every error is at a place that the text has, and can be shown there.
pub(crate) fn errors_lie_within(text: &str) {
    for mode in [Mode::Strict, Mode::AllowUnknown] {
        let parsed = parse("f.yaml", text, mode);
        let lines = lines(text);
        for found in &parsed.diagnostics {
            let line = lines.get((found.line as usize).wrapping_sub(1));
            let width = line.map_or(0, |line| line.chars().count());
            assert!(
                line.is_some() && (1..=width + 1).contains(&(found.column as usize)),
                "{found:?} in {text:?}"
            );
            found.render(text, true);
        }
        for parsed in &parsed.objects {
            assert!(
                text.get(parsed.text.clone()).is_some(),
                "{:?} in {text:?}",
                parsed.text
            );
        }
    }
}

/// An object that is taken is the same after it was written and read again.
pub(crate) fn accepted_objects_survive(text: &str) {
    for parsed in parse("f.yaml", text, Mode::AllowUnknown).objects {
        let object = parsed.object;
        let yaml = object.to_yaml();
        // What is not known was left out when it was read, save in the text inside a ConfigMap, which
        // stays as it was written.
        let mode = match object.kind {
            Kind::ConfigMap => Mode::AllowUnknown,
            _ => Mode::Strict,
        };
        let again = parse("again.yaml", &yaml, mode);
        let read = again.objects.first().map(|parsed| &parsed.object);
        assert_eq!(
            read,
            Some(&object),
            "{text:?}\n{yaml}\n{}",
            again.render(&yaml, false)
        );
        let (read, said) = Object::from_json_with(&object.to_json(), mode);
        assert_eq!(read, Some(object), "{text:?}\n{said:?}");
    }
}

/// Lines as YAML ends them.
fn lines(text: &str) -> Vec<String> {
    text.replace("\r\n", "\n")
        .replace('\r', "\n")
        .split('\n')
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_yaml_is_survived() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/yaml");
        for entry in std::fs::read_dir(corpus).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            super::yaml(&std::fs::read(path).unwrap());
        }
    }
}
