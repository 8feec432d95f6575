//! Mutual TLS as Istio configures it: TLS 1.2 and up, the peer verified against one authority.

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source, transport_socket,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, TlsCertificate,
    UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use envoy_types::pb::google::protobuf::BoolValue;
use prost::{Message, Name};

use super::any;
use crate::credentials::{Credentials, Pair, SERVER_NAME};

pub fn downstream(credentials: &Credentials) -> TransportSocket {
    transport(&DownstreamTlsContext {
        common_tls_context: Some(common(credentials, &credentials.server)),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    })
}

pub fn upstream(credentials: &Credentials) -> TransportSocket {
    transport(&UpstreamTlsContext {
        common_tls_context: Some(common(credentials, &credentials.client)),
        sni: SERVER_NAME.into(),
        ..Default::default()
    })
}

fn common(credentials: &Credentials, own: &Pair) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificates: vec![TlsCertificate {
            certificate_chain: Some(inline(&own.chain)),
            private_key: Some(inline(&own.key)),
            ..Default::default()
        }],
        validation_context_type: Some(ValidationContextType::ValidationContext(
            CertificateValidationContext {
                trusted_ca: Some(inline(&credentials.authority)),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.into())),
        ..Default::default()
    }
}

fn transport<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(context))),
    }
}
