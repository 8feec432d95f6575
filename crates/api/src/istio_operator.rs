//! `IstioOperator`: how a mesh is installed. What takes effect here is `spec.meshConfig`; the rest
//! describes deployments of a cluster and is kept.
//!
//! Field meaning: Istio's reference, operator API. Not a kind of a cluster since Istio 1.24, but the
//! file that people have their mesh settings in.

use serde_json::Value as Json;

use crate::mesh_config::MeshConfig;
use crate::schema::message;

message! {
    pub struct IstioOperator {
        pending profile: String,
        pending install_package_path "installPackagePath": String,
        pending hub: String,
        pending tag: Json,
        pending namespace: String,
        pending revision: String,
        pending compatibility_version "compatibilityVersion": String,
        effective mesh_config "meshConfig": Option<MeshConfig>,
        pending components: Option<Components>,
        pending values: Option<Values>,
        pending unvalidated_values "unvalidatedValues": Json,
    }
}

message! {
    pub struct Components {
        effective base: Option<Component>,
        effective pilot: Option<Component>,
        effective cni: Option<Component>,
        effective ztunnel: Option<Component>,
        effective istiod_remote "istiodRemote": Option<Component>,
        effective ingress_gateways "ingressGateways": Vec<Component>,
        effective egress_gateways "egressGateways": Vec<Component>,
    }
}

message! {
    pub struct Component {
        effective enabled: Option<bool>,
        effective namespace: String,
        effective name: String,
        effective label: Json,
        effective hub: String,
        effective tag: Json,
        effective spec: Json,
        effective k8s: Option<KubernetesResources>,
    }
}

message! {
    pub struct KubernetesResources {
        effective affinity: Json,
        effective env: Vec<Json>,
        effective hpa_spec "hpaSpec": Json,
        effective image_pull_policy "imagePullPolicy": String,
        effective node_selector "nodeSelector": Json,
        effective overlays: Vec<Json>,
        effective pod_annotations "podAnnotations": Json,
        effective pod_disruption_budget "podDisruptionBudget": Json,
        effective priority_class_name "priorityClassName": String,
        effective readiness_probe "readinessProbe": Json,
        effective replica_count "replicaCount": Option<u32>,
        effective resources: Json,
        effective security_context "securityContext": Json,
        effective service: Json,
        effective service_account "serviceAccount": Json,
        effective service_annotations "serviceAnnotations": Json,
        effective strategy: Json,
        effective tolerations: Vec<Json>,
        effective volume_mounts "volumeMounts": Vec<Json>,
        effective volumes: Vec<Json>,
    }
}

message! {
    /// Helm values.
    pub struct Values {
        effective ambient: Json,
        effective base: Json,
        effective cni: Json,
        effective compatibility_version "compatibilityVersion": String,
        effective default_revision "defaultRevision": String,
        effective experimental: Json,
        effective gateway_classes "gatewayClasses": Json,
        effective gateways: Json,
        effective global: Json,
        effective istiod_remote "istiodRemote": Json,
        effective mesh_config "meshConfig": Json,
        effective owner_name "ownerName": String,
        effective pilot: Json,
        effective platform: String,
        effective profile: String,
        effective revision: String,
        effective revision_tags "revisionTags": Vec<String>,
        effective sidecar_injector_webhook "sidecarInjectorWebhook": Option<SidecarInjectorWebhook>,
        effective sidecar_injector_webhook_annotations "sidecarInjectorWebhookAnnotations": Json,
        effective telemetry: Json,
        effective ztunnel: Json,
    }
}

message! {
    pub struct SidecarInjectorWebhook {
        effective always_inject_selector "alwaysInjectSelector": Vec<Json>,
        effective default_templates "defaultTemplates": Vec<String>,
        effective enable_namespaces_by_default "enableNamespacesByDefault": Option<bool>,
        effective injected_annotations "injectedAnnotations": Json,
        effective injection_url "injectionURL": String,
        effective never_inject_selector "neverInjectSelector": Vec<Json>,
        effective reinvocation_policy "reinvocationPolicy": String,
        effective rewrite_app_http_probe "rewriteAppHTTPProbe": Option<bool>,
        effective templates: Json,
    }
}
