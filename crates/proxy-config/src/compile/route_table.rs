//! `RouteConfiguration` and `VirtualHost`, which may stand in its table or come by itself (VHDS).

use super::filters;
use super::hcm::ads;
use super::headers::{HeaderFields, header_ops};
use super::mirror::mirrors;
use super::retry::retry_policy;
use super::route::route;
use super::scope::{At, reject, report};
use super::values::{flag, known, metadata, non_empty};
use crate::route::domains::{DomainError, DomainIndex};
use crate::route::index::RouteIndex;
use crate::route::{Mirror, RequireTls, RetryPolicy, RouteTable, VirtualHost};
use crate::{ConfigError, RouteFilters};
use envoy_types::pb::envoy::config::route::v3 as pb;
use std::cell::RefCell;
use std::sync::Arc;

pub(crate) fn route_table(
    message: pb::RouteConfiguration,
    at: At<'_>,
) -> Result<RouteTable, ConfigError> {
    let pb::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: table_metadata,
        route_specifiers,
    } = message;
    // Headers to keep from external clients: none may pass that should not.
    reject!(at; internal_only_headers);
    reject!(at; cluster_specifier_plugins, vhost_header, route_specifiers);
    let discovers = vhds.is_some();
    if let Some(pb::Vhds { config_source }) = vhds {
        let at = at.field("vhds");
        ads(config_source, at.field("config_source"))?;
    }
    let mirrors = mirrors(request_mirror_policies, &Arc::default(), at)?;
    if flag(validate_clusters, false) {
        at.field("validate_clusters")
            .notice("clusters are looked up per request");
    }
    let around = RouteFilters::default();
    let around = Inherited {
        retry: None,
        filters: filters::per_filter_config(typed_per_filter_config, &around, at)?,
        mirrors,
        body_limit: None,
    };
    let limits = Limits {
        ignore_path_parameters: ignore_path_parameters_in_path_matching,
        direct_response_body: max_direct_response_body_size_bytes.map_or(4096, |v| v.value)
            as usize,
    };

    let mut domains = DomainIndex::default();
    let mut hosts = Vec::with_capacity(virtual_hosts.len());
    for (i, host) in virtual_hosts.into_iter().enumerate() {
        let at = at.item("virtual_hosts", i);
        let host = virtual_host(host, &around, limits, at)?;
        index_domains(&mut domains, &host, i, at)?;
        hosts.push(Arc::new(host));
    }
    let around = discovers.then(|| Arc::new(Around { around, limits }));
    let headers = header_ops(
        HeaderFields {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        },
        at,
    )?;
    Ok(RouteTable {
        name: name.into(),
        virtual_hosts: hosts,
        headers,
        most_specific_header_mutations_wins,
        ignore_port_in_host_matching,
        ignore_path_parameters: ignore_path_parameters_in_path_matching,
        metadata: metadata(table_metadata, at.field("metadata"))?,
        domains,
        around,
    })
}

/// What a table gives to virtual hosts that come by themselves.
#[derive(Debug)]
pub(crate) struct Around {
    around: Inherited,
    limits: Limits,
}

/// A virtual host that comes by itself, for a table that wants such.
pub(crate) fn discovered_host(
    message: pb::VirtualHost,
    table: &RouteTable,
    at: At<'_>,
) -> Result<VirtualHost, ConfigError> {
    let Some(around) = &table.around else {
        return Err(at.error(format!(
            "the route configuration {} has its virtual hosts in itself",
            table.name
        )));
    };
    virtual_host(message, &around.around, around.limits, at)
}

impl RouteTable {
    /// Whether its virtual hosts come by themselves.
    pub fn discovers_hosts(&self) -> bool {
        self.around.is_some()
    }

    /// The table with these virtual hosts beside its own. When one cannot be there, its position and
    /// why.
    pub fn with_hosts(
        &self,
        hosts: impl Iterator<Item = Arc<VirtualHost>>,
    ) -> Result<RouteTable, (usize, ConfigError)> {
        let mut table = self.clone();
        let notices = RefCell::default();
        for (i, host) in hosts.enumerate() {
            let position = table.virtual_hosts.len();
            index_domains(&mut table.domains, &host, position, At::root(&notices))
                .map_err(|error| (i, error))?;
            table.virtual_hosts.push(host);
        }
        Ok(table)
    }
}

/// What a table says that its routes need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub ignore_path_parameters: bool,
    /// Bytes a direct response may have (default 4096, route.proto).
    pub direct_response_body: usize,
}

fn index_domains(
    index: &mut DomainIndex,
    host: &VirtualHost,
    position: usize,
    at: At<'_>,
) -> Result<(), ConfigError> {
    for (i, domain) in host.domains.iter().enumerate() {
        index.insert(domain, position).map_err(|e| {
            at.item("domains", i).error(match e {
                DomainError::Duplicate => {
                    format!("'{domain}' is already a domain of this route configuration")
                }
                DomainError::BadWildcard => {
                    format!("'{domain}' must have its wildcard at the start or at the end")
                }
            })
        })?;
    }
    Ok(())
}

fn virtual_host(
    message: pb::VirtualHost,
    around: &Inherited,
    limits: Limits,
    at: At<'_>,
) -> Result<VirtualHost, ConfigError> {
    let pb::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy: retries,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata: host_metadata,
        route_specifiers,
    } = message;
    reject!(at; matcher, rate_limits, cors, retry_policy_typed_config, route_specifiers);
    report!(at, "requests are not counted by virtual cluster"; virtual_clusters);
    report!(at, "requests are not hedged"; hedge_policy);
    report!(at, "x-envoy-is-timeout-retry is not sent"; include_is_timeout_retry_header);
    let mirrors = mirrors(request_mirror_policies, &around.mirrors, at)?;
    let filters = filters::per_filter_config(typed_per_filter_config, &around.filters, at)?;
    let retry = retries
        .map(|r| retry_policy(r, at.field("retry_policy")))
        .transpose()?
        .map(Arc::new);
    let inherited = Inherited {
        retry,
        filters,
        mirrors,
        body_limit: request_body_buffer_limit
            .map(|v| v.value)
            .or(per_request_buffer_limit_bytes.map(|v| v.value.into())),
    };
    if domains.is_empty() {
        return Err(at.field("domains").error("needs at least one domain"));
    }
    let headers = header_ops(
        HeaderFields {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        },
        at,
    )?;
    let name: Arc<str> = non_empty(name, at.field("name"))?.into();
    let routes = routes
        .into_iter()
        .enumerate()
        .map(|(i, r)| route(r, &name, &inherited, limits, at.item("routes", i)).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(VirtualHost {
        name,
        domains: domains.into_iter().map(String::into_boxed_str).collect(),
        index: RouteIndex::new(&routes),
        routes,
        headers,
        include_request_attempt_count,
        include_attempt_count_in_response,
        require_tls: match known(require_tls, at.field("require_tls"))? {
            pb::virtual_host::TlsRequirementType::None => RequireTls::None,
            pb::virtual_host::TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            pb::virtual_host::TlsRequirementType::All => RequireTls::All,
        },
        metadata: metadata(host_metadata, at.field("metadata"))?,
        ignore_path_parameters: limits.ignore_path_parameters,
    })
}

/// What a route takes over from its virtual host, and that from its table, when it says nothing
/// itself.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub retry: Option<Arc<RetryPolicy>>,
    pub filters: RouteFilters,
    pub mirrors: Arc<[Mirror]>,
    pub body_limit: Option<u64>,
}
