//! `SdsSecretConfig`: which secret, and who is asked for it. The control plane (`ads`), or a server
//! of its own behind a static cluster: Istio's agents and SPIRE answer on a socket beside the proxy.

use super::hcm::ads;
use super::scope::{At, reject, report};
use super::values::{known, non_empty};
use crate::{ConfigError, SecretRef, SecretSource};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use std::sync::Arc;

pub(crate) fn secret_ref(
    message: pb::SdsSecretConfig,
    at: At<'_>,
) -> Result<SecretRef, ConfigError> {
    use core::config_source::ConfigSourceSpecifier::{Ads, ApiConfigSource};
    let pb::SdsSecretConfig { name, sds_config } = message;
    let name = non_empty(name, at.field("name"))?.into();
    let at = at.field("sds_config");
    let Some(mut config) = sds_config else {
        return Err(at.error("is required: a secret without it would be static_resources' own"));
    };
    let source = match config.config_source_specifier.take() {
        Some(ApiConfigSource(api)) => {
            config.config_source_specifier = Some(Ads(core::AggregatedConfigSource {}));
            SecretSource::Cluster(cluster(api, at.field("api_config_source"))?)
        }
        specifier => {
            config.config_source_specifier = specifier;
            SecretSource::Ads
        }
    };
    // What is beside the specifier is the same for both.
    ads(Some(config), at)?;
    Ok(SecretRef { name, source })
}

/// The one cluster of an `ApiConfigSource`.
fn cluster(message: core::ApiConfigSource, at: At<'_>) -> Result<Arc<str>, ConfigError> {
    use core::api_config_source::ApiType;
    let core::ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        // One node per stream, always.
        set_node_on_first_message_only: _,
        config_validators,
    } = message;
    reject!(at; cluster_names, config_validators);
    report!(at, "there is one stream, which is not polled"; refresh_delay, request_timeout);
    report!(at, "requests for secrets are few"; rate_limit_settings);
    let type_at = at.field("api_type");
    match known(api_type, type_at)? {
        ApiType::Grpc => {}
        ApiType::DeltaGrpc => type_at.notice("this proxy asks for secrets with GRPC"),
        _ => return Err(type_at.error("only GRPC is supported")),
    }
    match known(transport_api_version, at.field("transport_api_version"))? {
        core::ApiVersion::Auto | core::ApiVersion::V3 => {}
        core::ApiVersion::V2 => {
            return Err(at
                .field("transport_api_version")
                .error("only V3 is supported"));
        }
    }
    let mut services = grpc_services.into_iter();
    match (services.next(), services.next()) {
        (Some(service), None) => grpc_cluster(service, at.item("grpc_services", 0)),
        _ => Err(at.field("grpc_services").error("must have one entry")),
    }
}

fn grpc_cluster(message: core::GrpcService, at: At<'_>) -> Result<Arc<str>, ConfigError> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let core::GrpcService {
        timeout,
        initial_metadata,
        retry_policy,
        target_specifier,
    } = message;
    reject!(at; initial_metadata);
    report!(at, "a stream has no time limit"; timeout);
    report!(at, "a stream that ends is opened again"; retry_policy);
    let Some(TargetSpecifier::EnvoyGrpc(grpc)) = target_specifier else {
        return Err(at.error("only envoy_grpc is supported"));
    };
    let at = at.field("envoy_grpc");
    let EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length,
        // None are sent.
        skip_envoy_headers: _,
    } = grpc;
    report!(at, "the server is found by its address"; authority);
    report!(at, "a stream that ends is opened again"; retry_policy);
    report!(at, "messages have this proxy's own limit"; max_receive_message_length);
    Ok(non_empty(cluster_name, at.field("cluster_name"))?.into())
}
