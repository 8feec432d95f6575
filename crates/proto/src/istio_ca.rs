//! The service that workloads get their certificates from: Istio's `istio.v1.auth.IstioCertificateService`
//! (`security/proto/istioca.proto`), messages, client and server.
//!
//! Written by hand because it is one call with two messages, and needs no protoc.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use prost_types::Value;
pub use prost_types::value::Kind;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{BoxFuture, Bytes, Service, StdError, http};
use tonic::server::{NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The name of the service.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";
/// The path of its one call.
const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// What a workload asks for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// A certificate signing request in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds for which the certificate is wanted; 0 is as long as the authority gives by itself.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `CertSigner`, `ImpersonatedIdentity`, ...
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Metadata>,
}

/// `google.protobuf.Struct`, with its fields in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// What the workload gets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// Certificates in PEM: the workload's first, then those between it and the root, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// A client of the service over any gRPC channel.
#[derive(Clone, Debug)]
pub struct IstioCertificateServiceClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> IstioCertificateServiceClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    pub fn new(channel: T) -> Self {
        Self {
            inner: tonic::client::Grpc::new(channel),
        }
    }

    /// Larger answers are errors.
    #[must_use]
    pub fn max_decoding_message_size(mut self, bytes: usize) -> Self {
        self.inner = self.inner.max_decoding_message_size(bytes);
        self
    }

    /// Has a certificate made. The caller proves who it is with the `authorization` metadata or
    /// with the certificate of the connection.
    pub async fn create_certificate(
        &mut self,
        request: impl tonic::IntoRequest<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let ready = self.inner.ready().await;
        ready.map_err(|error| {
            let error: StdError = error.into();
            Status::unavailable(format!("the service is not ready: {error}"))
        })?;
        let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
        let codec = ProstCodec::default();
        self.inner.unary(request.into_request(), path, codec).await
    }
}

/// What stands behind the service.
pub trait IstioCertificateService: Send + Sync + 'static {
    /// Judges who asks (by metadata and extensions of the request) and answers with a chain.
    fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> impl Future<Output = Result<Response<IstioCertificateResponse>, Status>> + Send;
}

/// The service for an HTTP/2 server. Cheap to clone.
pub struct IstioCertificateServiceServer<T> {
    inner: Arc<T>,
    max_request: usize,
}

impl<T> IstioCertificateServiceServer<T> {
    /// Requests longer than `max_request` bytes are refused.
    pub fn new(inner: Arc<T>, max_request: usize) -> Self {
        Self { inner, max_request }
    }
}

impl<T> Clone for IstioCertificateServiceServer<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            max_request: self.max_request,
        }
    }
}

impl<T> NamedService for IstioCertificateServiceServer<T> {
    const NAME: &'static str = SERVICE;
}

struct CreateCertificate<T>(Arc<T>);

impl<T: IstioCertificateService> UnaryService<IstioCertificateRequest> for CreateCertificate<T> {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.create_certificate(request).await })
    }
}

impl<T, B> Service<http::Request<B>> for IstioCertificateServiceServer<T>
where
    T: IstioCertificateService,
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != CREATE_CERTIFICATE {
            let answer = Status::unimplemented("the service has one call: CreateCertificate");
            return Box::pin(std::future::ready(Ok(answer.into_http())));
        }
        let mut grpc = tonic::server::Grpc::new(ProstCodec::default())
            .max_decoding_message_size(self.max_request);
        let method = CreateCertificate(self.inner.clone());
        Box::pin(async move { Ok(grpc.unary(method, request).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl IstioCertificateService for Echo {
        async fn create_certificate(
            &self,
            request: Request<IstioCertificateRequest>,
        ) -> Result<Response<IstioCertificateResponse>, Status> {
            let asked = request.into_inner();
            match asked.csr.as_str() {
                "" => Err(Status::invalid_argument("no CSR")),
                csr => Ok(Response::new(IstioCertificateResponse {
                    cert_chain: vec![csr.to_owned(), asked.validity_duration.to_string()],
                })),
            }
        }
    }

    #[tokio::test]
    async fn a_client_gets_what_the_service_answers() {
        let server = IstioCertificateServiceServer::new(Arc::new(Echo), 1_000);
        let mut client = IstioCertificateServiceClient::new(server);
        let asked = |csr: &str| IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: 3600,
            metadata: Some(Metadata::default()),
        };
        let answer = client.create_certificate(asked("abc")).await.unwrap();
        assert_eq!(answer.into_inner().cert_chain, ["abc", "3600"]);
        let refused = client.create_certificate(asked("")).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        let long = client.create_certificate(asked(&"x".repeat(2_000)));
        assert_eq!(long.await.unwrap_err().code(), tonic::Code::OutOfRange);
    }

    #[test]
    fn messages_have_the_bytes_of_istios_proto() {
        use prost::Message;
        let request = IstioCertificateRequest {
            csr: "a".into(),
            validity_duration: 86_400,
            metadata: None,
        };
        let bytes = request.encode_to_vec();
        assert_eq!(bytes, [0x0a, 1, b'a', 0x18, 0x80, 0xa3, 0x05]);
        let response = IstioCertificateResponse {
            cert_chain: vec!["a".into(), "b".into()],
        };
        let bytes = response.encode_to_vec();
        assert_eq!(bytes, [0x0a, 1, b'a', 0x0a, 1, b'b']);
    }
}
