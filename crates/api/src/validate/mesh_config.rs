//! Rules of `MeshConfig`, and reading it from the text of a ConfigMap.

use lateen_telemetry::format;

use super::{Checker, extension_providers, http_route, names, traffic_policy};
use crate::decode::{Decoder, Problem};
use crate::field::Field;
use crate::gateway::SERVED_CIPHER_SUITES;
use crate::mesh_config::*;
use crate::node::{Node, Value};
use crate::path::Path;
use crate::yaml;

/// Curves for key agreement (those of Istio's validation).
const ECDH_CURVES: [&str; 5] = ["X25519", "P-256", "P-384", "P-521", "X25519MLKEM768"];

/// The settings in a text, and everything wrong with it; places are those within the text.
pub fn read(text: &str, allow_unknown: bool) -> (Option<MeshConfig>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut root = Node::null();
    for (index, document) in yaml::read(text).into_iter().enumerate() {
        problems.extend(document.errors.into_iter().map(Problem::from));
        if index == 0 && !document.broken {
            root = document.root;
        }
    }
    if root.value == Value::Null {
        return (Some(MeshConfig::default()), problems);
    }
    let mut decoder = Decoder::new(Path::root(), allow_unknown);
    let config = MeshConfig::decode(&root, &mut decoder);
    if let Some(config) = &config {
        let mut check = Checker::default();
        validate(&mut check, config);
        problems.extend(check.problems.into_iter().map(|mut problem| {
            problem.at = root.locate(&problem.path);
            problem
        }));
    }
    problems.extend(decoder.problems);
    (config, problems)
}

pub fn validate(check: &mut Checker, config: &MeshConfig) {
    access_log(check, config);
    extension_providers::validate(check, &config.extension_providers);
    check.duration("connectTimeout", &config.connect_timeout);
    check.duration("dnsRefreshRate", &config.dns_refresh_rate);
    for (name, list, nowhere) in [
        (
            "defaultServiceExportTo",
            &config.default_service_export_to,
            true,
        ),
        (
            "defaultVirtualServiceExportTo",
            &config.default_virtual_service_export_to,
            false,
        ),
        (
            "defaultDestinationRuleExportTo",
            &config.default_destination_rule_export_to,
            false,
        ),
    ] {
        check.list(name, list, |check, entry| match entry.as_str() {
            "." | "*" => {}
            "~" if nowhere => {}
            _ => check.error_hint(
                format!("{entry:?} cannot be the default of all namespaces"),
                if nowhere {
                    "use \".\", \"*\" or \"~\""
                } else {
                    "use \".\" or \"*\""
                },
            ),
        });
    }
    check.some("rootNamespace", &config.root_namespace, |check, name| {
        check.syntax(names::label(name));
    });
    check.some("trustDomain", &config.trust_domain, |check, name| {
        check.syntax(names::fqdn(name));
    });
    check.list(
        "trustDomainAliases",
        &config.trust_domain_aliases,
        |check, name| check.syntax(names::fqdn(name)),
    );
    tls(check, config);
    check.some(
        "localityLbSetting",
        &config.locality_lb_setting,
        traffic_policy::locality,
    );
    check.some(
        "zoneAwareLbSetting",
        &config.zone_aware_lb_setting,
        traffic_policy::zone_aware,
    );
    check.some(
        "defaultHttpRetryPolicy",
        &config.default_http_retry_policy,
        http_route::retries,
    );
}

/// Ciphers and curves that proxies know; the two settings differ in what has an effect.
fn tls(check: &mut Checker, config: &MeshConfig) {
    let common = |check: &mut Checker, tls: &TlsConfig| {
        check.list("cipherSuites", &tls.cipher_suites, |check, name| {
            if !SERVED_CIPHER_SUITES.contains(&name.as_str()) {
                check.error_hint(
                    format!("{name:?} is not a cipher suite of TLS 1.2 that proxies know"),
                    "use names such as ECDHE-ECDSA-AES256-GCM-SHA384",
                );
            }
        });
        check.list("ecdhCurves", &tls.ecdh_curves, |check, name| {
            if !ECDH_CURVES.contains(&name.as_str()) {
                check.error_hint(
                    format!("{name:?} is not a curve that proxies know"),
                    "use X25519, P-256, P-384, P-521 or X25519MLKEM768",
                );
            }
        });
    };
    check.some("meshMTLS", &config.mesh_mtls, |check, tls| {
        common(check, tls);
        if !tls.ecdh_curves.is_empty() {
            check.field("ecdhCurves", |check| {
                check.warning("has no effect on TLS within the mesh (as in Istio)");
            });
        }
    });
    check.some("tlsDefaults", &config.tls_defaults, |check, tls| {
        common(check, tls);
        if tls.min_protocol_version.is_some() {
            check.field("minProtocolVersion", |check| {
                check.warning(
                    "has no effect here; set it in meshMTLS, or as tls.minProtocolVersion of a \
                     Gateway's server",
                );
            });
        }
    });
}

/// The format is what a proxy would refuse its listeners for, so all that is wrong with it is said
/// here, with the right spelling.
fn access_log(check: &mut Checker, config: &MeshConfig) {
    let Some(text) = config
        .access_log_format
        .as_deref()
        .filter(|text| !text.is_empty())
    else {
        return;
    };
    let found = match config.access_log_encoding.unwrap_or_default() {
        AccessLogEncoding::Text => format::problems(text),
        AccessLogEncoding::Json => match serde_json::from_str::<serde_json::Value>(text) {
            Ok(serde_json::Value::Object(object)) => match format::Format::json(&object) {
                Ok(_) => Vec::new(),
                Err(error) => vec![error],
            },
            Ok(_) => {
                check.field("accessLogFormat", |check| {
                    check.error("with accessLogEncoding JSON the format must be a JSON object");
                });
                return;
            }
            Err(error) => {
                check.field("accessLogFormat", |check| {
                    check.error_hint(
                        format!("the format is not JSON: {error}"),
                        "write an object such as {\"code\": \"%RESPONSE_CODE%\"}, or set \
                         accessLogEncoding to TEXT",
                    );
                });
                return;
            }
        },
    };
    check.field("accessLogFormat", |check| {
        for error in found {
            check.error(error);
        }
    });
}
