//! The type URLs of the resources that travel over ADS, and the order in which they are pushed.

pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Virtual hosts by name (VHDS), called `TABLE/HOST`.
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// Host names for the proxy's DNS server: Istio's own type.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// Push order: what is referred to comes before what refers to it ("make before break" in Envoy's
/// xDS protocol description; the same order as Istio's `PushOrder`). Other types follow.
pub const PUSH_ORDER: [&str; 7] = [
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    VIRTUAL_HOST,
    SECRET,
    EXTENSION_CONFIG,
];

/// Position of a type in a push; types that are not in [`PUSH_ORDER`] come last.
pub fn push_rank(type_url: &str) -> usize {
    PUSH_ORDER
        .iter()
        .position(|known| *known == type_url)
        .unwrap_or(PUSH_ORDER.len())
}

/// The short name used in status tables and metric labels, as Istio writes it (`cds`, `eds`, ...).
/// Unknown types answer with the last part of the URL's message name.
pub fn short(type_url: &str) -> &str {
    match type_url {
        CLUSTER => "cds",
        ENDPOINT => "eds",
        LISTENER => "lds",
        ROUTE => "rds",
        VIRTUAL_HOST => "vhds",
        SECRET => "sds",
        EXTENSION_CONFIG => "ecds",
        NAME_TABLE => "nds",
        other => other.rsplit(['.', '/']).next().unwrap_or(other),
    }
}

/// Whether an empty list of names in the first request means "everything" for this type. The xDS
/// specification keeps this older form for listeners and clusters; for the types that are
/// referred to by name an empty list means nothing. Types unknown here count as wildcard, as in
/// Istio.
pub fn is_wildcard_by_default(type_url: &str) -> bool {
    !matches!(type_url, ENDPOINT | ROUTE | SECRET | EXTENSION_CONFIG)
}

/// Whether a state-of-the-world response of this type must carry every subscribed resource: for
/// listeners and clusters a client takes absence for deletion, for the others it does not.
pub fn is_full_state(type_url: &str) -> bool {
    matches!(type_url, LISTENER | CLUSTER)
}

/// Whether a client that asks for a resource that is not there, or no longer, is told so. A secret
/// is never taken away: what a proxy serves with stays until there is another (as Envoy's SDS and
/// Istio have it), and one that nobody has yet is waited for.
pub fn tells_absence(type_url: &str) -> bool {
    type_url != SECRET
}
