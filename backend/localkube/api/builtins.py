"""The built-in kinds: their fields in a short notation, compiled to the same schemas as those of custom resources.

A type is a line `Name field:type ...`. Types are s(tring), i(nteger), b(oolean), n(umber), q(uantity), I (integer or string),
`*` (anything), another name, `[T]` a list, `{T}` a map. Behind them `!` marks a required field, `?` one that may be null,
`@a,b` the merge keys of a list, `#` a list of values that merges, `=json` the default.
"""

from __future__ import annotations

import json
from functools import cache

from backend.localkube.api.kinds import Column, Kind, Scale
from backend.localkube.api.schema import LENIENT, Schema
from backend.localkube.api.status import Json

TYPES = """
ObjectMeta name:s generateName:s namespace:s selfLink:s uid:s resourceVersion:s generation:i creationTimestamp:s deletionTimestamp:s
 deletionGracePeriodSeconds:i labels:{s} annotations:{s} ownerReferences:[Owner]@uid finalizers:[s]# managedFields:[*]
Owner apiVersion:s! kind:s! name:s! uid:s! controller:b blockOwnerDeletion:b
Condition type:s! status:s! reason:s message:s lastTransitionTime:s lastProbeTime:s lastUpdateTime:s observedGeneration:i
Selector matchLabels:{s} matchExpressions:[*]
Reference apiVersion:s kind:s namespace:s name:s uid:s resourceVersion:s fieldPath:s
NamespaceSpec finalizers:[s]
NamespaceStatus phase:s conditions:[Condition]@type
PodTemplate metadata:ObjectMeta spec:PodSpec
PodSpec containers:[Container]!@name initContainers:[Container]@name ephemeralContainers:[*] volumes:[Volume]@name
 restartPolicy:s="Always" terminationGracePeriodSeconds:i=30 activeDeadlineSeconds:i dnsPolicy:s="ClusterFirst" nodeSelector:{s}
 serviceAccountName:s serviceAccount:s automountServiceAccountToken:b nodeName:s hostNetwork:b hostPID:b hostIPC:b hostUsers:b
 shareProcessNamespace:b securityContext:*={} imagePullSecrets:[Local]@name hostname:s subdomain:s affinity:*
 schedulerName:s="default-scheduler" tolerations:[Toleration] hostAliases:[*] priorityClassName:s priority:i dnsConfig:*
 readinessGates:[*] runtimeClassName:s enableServiceLinks:b=true preemptionPolicy:s overhead:{q} topologySpreadConstraints:[*]
 setHostnameAsFQDN:b os:* schedulingGates:[*] resourceClaims:[*] resources:Resources
Local name:s
Toleration key:s operator:s value:s effect:s tolerationSeconds:i
Container name:s! image:s! command:[s] args:[s] workingDir:s ports:[Port]@containerPort,protocol envFrom:[*] env:[EnvVar]@name
 resources:Resources={} resizePolicy:[*] restartPolicy:s volumeMounts:[Mount]@mountPath volumeDevices:[*] livenessProbe:Probe
 readinessProbe:Probe startupProbe:Probe lifecycle:* terminationMessagePath:s="/dev/termination-log" terminationMessagePolicy:s="File"
 imagePullPolicy:s securityContext:* stdin:b stdinOnce:b tty:b
Port name:s containerPort:i! hostPort:i hostIP:s protocol:s="TCP"
EnvVar name:s! value:s valueFrom:*
Resources limits:{q} requests:{q} claims:[*]
Mount name:s! mountPath:s! readOnly:b recursiveReadOnly:s subPath:s subPathExpr:s mountPropagation:s
Probe exec:* httpGet:HttpGet tcpSocket:* grpc:* initialDelaySeconds:i timeoutSeconds:i=1 periodSeconds:i=10 successThreshold:i=1
 failureThreshold:i=3 terminationGracePeriodSeconds:i
HttpGet path:s="/" port:I! host:s scheme:s="HTTP" httpHeaders:[*]
Volume name:s! emptyDir:* hostPath:HostPath configMap:ConfigMapVolume secret:SecretVolume projected:* persistentVolumeClaim:* downwardAPI:*
 ephemeral:* csi:* nfs:* image:*
HostPath path:s! type:s=""
ConfigMapVolume name:s items:[*] defaultMode:i=420 optional:b
SecretVolume secretName:s items:[*] defaultMode:i=420 optional:b
PodStatus phase:s conditions:[Condition]@type message:s reason:s nominatedNodeName:s hostIP:s hostIPs:[*] podIP:s podIPs:[*] startTime:s
 initContainerStatuses:[*] containerStatuses:[*] ephemeralContainerStatuses:[*] qosClass:s resize:s observedGeneration:i
 resourceClaimStatuses:[*]
ServiceSpec ports:[ServicePort]@port,protocol selector:{s} clusterIP:s clusterIPs:[s] type:s="ClusterIP" sessionAffinity:s="None"
 externalIPs:[s] loadBalancerIP:s loadBalancerSourceRanges:[s] externalName:s externalTrafficPolicy:s healthCheckNodePort:i
 publishNotReadyAddresses:b ipFamilies:[s] ipFamilyPolicy:s allocateLoadBalancerNodePorts:b loadBalancerClass:s
 internalTrafficPolicy:s="Cluster" sessionAffinityConfig:* trafficDistribution:s
ServicePort name:s protocol:s="TCP" appProtocol:s port:i! targetPort:I nodePort:i
ServiceStatus loadBalancer:* conditions:[Condition]@type
NodeSpec podCIDR:s podCIDRs:[s] providerID:s unschedulable:b taints:[*]
NodeStatus capacity:{q} allocatable:{q} phase:s conditions:[Condition]@type addresses:[*] nodeInfo:* images:[*] daemonEndpoints:*
LeaseSpec holderIdentity:s leaseDurationSeconds:i acquireTime:s renewTime:s leaseTransitions:i strategy:s preferredHolder:s
WorkloadSpec replicas:i=1 minReadySeconds:i selector:Selector! template:PodTemplate! strategy:Strategy={} revisionHistoryLimit:i=10
 paused:b progressDeadlineSeconds:i=600
SetSpec replicas:i=1 minReadySeconds:i selector:Selector! template:PodTemplate
Strategy type:s="RollingUpdate" rollingUpdate:Rolling
Rolling maxUnavailable:I="25%" maxSurge:I="25%"
WorkloadStatus observedGeneration:i replicas:i updatedReplicas:i readyReplicas:i availableReplicas:i unavailableReplicas:i
 fullyLabeledReplicas:i terminatingReplicas:i collisionCount:i conditions:[Condition]@type
CrdSpec group:s! names:CrdNames! scope:s! versions:[*]! conversion:*={"strategy":"None"} preserveUnknownFields:b
CrdNames plural:s! singular:s kind:s! listKind:s shortNames:[s] categories:[s]
CrdStatus conditions:[Condition]@type acceptedNames:* storedVersions:[s]
"""

KINDS = """
v1 namespaces Namespace ns - cluster spec:NamespaceSpec={} status:NamespaceStatus
v1 pods Pod po all namespaced spec:PodSpec! status:PodStatus
v1 services Service svc all namespaced spec:ServiceSpec={} status:ServiceStatus
v1 nodes Node no - cluster spec:NodeSpec={} status:NodeStatus={}
v1 configmaps ConfigMap cm - namespaced data:{s} binaryData:{s} immutable:b
v1 secrets Secret - - namespaced data:{s} stringData:{s} type:s="Opaque" immutable:b
v1 serviceaccounts ServiceAccount sa - namespaced secrets:[*] imagePullSecrets:[Local]@name automountServiceAccountToken:b
v1 events Event ev - namespaced involvedObject:Reference! reason:s message:s source:*={} firstTimestamp:s?=null
 lastTimestamp:s?=null count:i type:s eventTime:s?=null series:* action:s related:Reference reportingComponent:s="" reportingInstance:s=""
apps/v1 controllerrevisions ControllerRevision - - namespaced data:* revision:i!
apps/v1 deployments Deployment deploy all namespaced spec:WorkloadSpec! status:WorkloadStatus={}
apps/v1 replicasets ReplicaSet rs all namespaced spec:SetSpec! status:WorkloadStatus={}
coordination.k8s.io/v1 leases Lease - - namespaced spec:LeaseSpec={}
apiextensions.k8s.io/v1 customresourcedefinitions CustomResourceDefinition crd,crds api-extensions cluster spec:CrdSpec! status:CrdStatus
"""

FIELDS = {
    "pods": ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase",
             "status.podIP", "status.nominatedNodeName"),
    "events": ("involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
               "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type"),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "services": ("spec.clusterIP", "spec.type"),
    "nodes": ("spec.unschedulable",),
    "replicasets.apps": ("status.replicas",),
}  # fmt: skip

COLUMNS = {
    "pods": ("Ready:@ready", "Status:@phase", "Restarts:@restarts", "Age:age", "IP:.status.podIP:1", "Node:.spec.nodeName:1",
             "Nominated Node:.status.nominatedNodeName:1", "Readiness Gates:.spec.readinessGates:1"),
    "namespaces": ("Status:.status.phase", "Age:age"),
    "services": ("Type:.spec.type", "Cluster-IP:.spec.clusterIP", "External-IP:.spec.externalIPs", "Port(s):@ports", "Age:age",
                 "Selector:.spec.selector:1"),
    "nodes": ("Status:@node", "Roles:.spec.roles", "Age:age", "Version:.status.nodeInfo.kubeletVersion"),
    "configmaps": ("Data:@data", "Age:age"),
    "secrets": ("Type:.type", "Data:@data", "Age:age"),
    "serviceaccounts": ("Age:age",),
    "events": ("Last Seen:@seen", "Type:.type", "Reason:.reason", "Object:@involved", "Message:.message"),
    "controllerrevisions.apps": ("Controller:@controller", "Revision:.revision", "Age:age"),
    "deployments.apps": ("Ready:@replicas", "Up-to-date:.status.updatedReplicas", "Available:.status.availableReplicas", "Age:age",
                         "Containers:@containers:1", "Images:@images:1", "Selector:@selector:1"),
    "replicasets.apps": ("Desired:.spec.replicas", "Current:.status.replicas", "Ready:.status.readyReplicas", "Age:age"),
    "leases.coordination.k8s.io": ("Holder:.spec.holderIdentity", "Age:age"),
    "customresourcedefinitions.apiextensions.k8s.io": ("Created At:.metadata.creationTimestamp",),
}  # fmt: skip

_SIMPLE = {"s": "string", "i": "integer", "b": "boolean", "n": "number", "q": "quantity"}
_MERGES = {"x-kubernetes-patch-strategy": "merge"}
"""Tells kubectl that a list merges in a strategic patch."""
_WORKLOAD_SCALE = Scale(".spec.replicas", ".status.replicas", "")


@cache
def _lines(text: str) -> dict[str, list[str]]:
    """First word of every entry to its further words; a line that begins with a blank goes on with the one above."""
    entries = (entry.split() for entry in text.replace("\n ", " ").strip().splitlines())
    return {words[0]: words[1:] for words in entries}


def _fields(words: list[str]) -> Json:
    """An object's schema from `field:type` words."""
    properties: Json = {}
    required = []
    for word in words:
        name, _, rest = word.partition(":")
        rest, _, default = rest.partition("=")
        rest, _, keys = rest.partition("@")
        if rest.endswith("!"):
            required.append(name)
        properties[name] = field = dict(_type(rest.rstrip("!?")))
        if rest.endswith("?"):
            field["nullable"] = True
        if keys:
            field |= {LENIENT: True, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys.split(","), **_MERGES}
            field["x-kubernetes-patch-merge-key"] = field["x-kubernetes-list-map-keys"][0]
        if default:
            field["default"] = json.loads(default)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _type(word: str) -> Json:
    if word in _SIMPLE:
        return {"type": _SIMPLE[word]}
    if word == "I":
        return {"x-kubernetes-int-or-string": True}
    if word == "*":
        return {"x-kubernetes-preserve-unknown-fields": True}
    if word.endswith("#"):
        return {**_type(word[:-1]), LENIENT: True, "x-kubernetes-list-type": "set", **_MERGES}
    if word.startswith("["):
        return {"type": "array", "items": _type(word[1:-1])}
    if word.startswith("{"):
        return {"type": "object", "additionalProperties": _type(word[1:-1])}
    return _named(word)


@cache
def _named(name: str) -> Json:
    return _fields(_lines(TYPES)[name])


def metadata_schema() -> Json:
    return _named("ObjectMeta")


def root(schema: Json) -> Schema:
    """The schema of a whole object: with kind, apiVersion and metadata."""
    head = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata_schema()}
    return Schema({**schema, "type": "object", "properties": {**(schema.get("properties") or {}), **head}})


def columns(entries: tuple[str, ...]) -> tuple[Column, ...]:
    found = [Column("Name", "string", ".metadata.name", format="name")]
    for entry in entries:
        name, path, *priority = entry.split(":")
        kind, path = ("string", ".metadata.creationTimestamp") if path == "age" else ("string", path)
        found.append(Column(name, kind, path, priority=int(priority[0]) if priority else 0, age=entry.endswith(":age")))
    return tuple(found)


def kinds() -> list[Kind]:
    """All built-in kinds."""
    entries = [entry.split() for entry in KINDS.replace("\n ", " ").strip().splitlines()]
    return [_kind(*entry[:6], words=entry[6:]) for entry in entries]


def _kind(version: str, plural: str, kind: str, short: str, category: str, scope: str, *, words: list[str]) -> Kind:
    group, _, number = version.rpartition("/")
    key = f"{plural}.{group}" if group else plural
    subresources = ["status"] if any(word.startswith("status:") for word in words) else []
    scaled = plural in ("deployments", "replicasets")
    return Kind(
        group=group,
        version=number,
        plural=plural,
        kind=kind,
        namespaced=scope == "namespaced",
        schema=root(_fields(words)),
        short_names=() if short == "-" else tuple(short.split(",")),
        categories=() if category == "-" else (category,),
        status="status" in subresources,
        scale=_WORKLOAD_SCALE if scaled else None,
        columns=columns(COLUMNS[key]),
        fields=FIELDS.get(key, ()),
        counts=plural in ("pods", "deployments", "replicasets", "customresourcedefinitions"),
    )
