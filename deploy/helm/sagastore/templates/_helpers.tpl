{{- define "sagastore.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sagastore.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sagastore.labels" -}}
{{ include "sagastore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sagastore.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sagastore.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sagastore.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "sagastore.holder" -}}
{{ include "sagastore.fullname" . }}-holder
{{- end -}}

{{- /* Address of the server with the SQLite file. */ -}}
{{- define "sagastore.holderAddress" -}}
{{ include "sagastore.holder" . }}-0.{{ include "sagastore.holder" . }}.{{ .Release.Namespace }}.svc:50051
{{- end -}}

{{- /* Settings of all servers. A JSON value is also a TOML value. */ -}}
{{- define "sagastore.settings" -}}
listen = "0.0.0.0:50051"
ops_listen = "0.0.0.0:9464"
ops_allow_insecure = true
{{- if .Values.allowInsecure }}
allow_insecure = true
{{- end }}
{{- if .Values.tls.existingSecret }}
tls_cert = "/etc/sagastore/tls/tls.crt"
tls_key = "/etc/sagastore/tls/tls.key"
{{- if .Values.tls.clientCertificates }}
tls_client_ca = "/etc/sagastore/tls/ca.crt"
{{- end }}
{{- end }}
{{- if .Values.access.existingSecret }}
access = {{ printf "/etc/sagastore/access/%s" .Values.access.key | toJson }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end -}}

{{- define "sagastore.check" -}}
{{- if and (not .Values.allowInsecure) (not (and .Values.tls.existingSecret (or .Values.access.existingSecret .Values.tls.clientCertificates))) -}}
{{- fail "set tls.existingSecret, and access.existingSecret or tls.clientCertificates; or allowInsecure=true in a trusted network" -}}
{{- end -}}
{{- if and (ne .Values.mode "sqlite") (not .Values.postgres.existingSecret) -}}
{{- fail (printf "mode %s needs postgres.existingSecret: the secret with the connection string" .Values.mode) -}}
{{- end -}}
{{- if and .Values.probes.grpc .Values.tls.existingSecret -}}
{{- fail "probes.grpc and tls.existingSecret contradict each other: the gRPC probe does not use TLS" -}}
{{- end -}}
{{- if and .Values.forwarding.tlsSecret (not .Values.tls.existingSecret) -}}
{{- fail "forwarding.tlsSecret needs tls.existingSecret: the servers use TLS among themselves only if they serve it" -}}
{{- end -}}
{{- if and (eq .Values.mode "migration") .Values.tls.existingSecret (not .Values.forwarding.tlsSecret) -}}
{{- fail "mode migration with tls.existingSecret needs forwarding.tlsSecret: ca.crt of the server with the SQLite file" -}}
{{- end -}}
{{- end -}}

{{- /* Seconds for the end of a pod: preStop, drain_seconds, and 30 to close the stores. */ -}}
{{- define "sagastore.gracePeriod" -}}
{{- $drain := 30 -}}
{{- if hasKey .Values.settings "drain_seconds" -}}
{{- $drain = ceil .Values.settings.drain_seconds | int -}}
{{- end -}}
{{- add .Values.preStopSeconds $drain 30 -}}
{{- end -}}

{{- /* Template of a pod. Arguments: root, role (server or holder). */ -}}
{{- define "sagastore.pod" -}}
{{- $root := .root -}}
{{- with .root -}}
{{- $holder := eq $.role "holder" -}}
{{- $forwards := and (not $holder) (eq .Values.mode "migration") -}}
metadata:
  labels:
    {{- include "sagastore.selector" . | nindent 4 }}
    app.kubernetes.io/component: {{ $.role }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/settings: {{ include (print .Template.BasePath "/configmap.yaml") . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sagastore.serviceAccountName" . }}
  automountServiceAccountToken: false
  # Kubernetes would set variables that begin with the name of the service.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "sagastore.gracePeriod" . }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: sagastore
      image: {{ include "sagastore.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/sagastore/settings/{{ $.role }}.toml]
      env:
        {{- if ne .Values.mode "sqlite" }}
        - name: SAGASTORE_POSTGRES
          valueFrom:
            secretKeyRef:
              name: {{ .Values.postgres.existingSecret }}
              key: {{ .Values.postgres.key }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: grpc, containerPort: 50051}
        - {name: ops, containerPort: 9464}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      startupProbe:
        httpGet: {path: /livez, port: ops}
        periodSeconds: 2
        failureThreshold: {{ div (add .Values.probes.startupSeconds 1) 2 }}
      livenessProbe:
        httpGet: {path: /livez, port: ops}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      # Longer than a failover of PostgreSQL takes (Patroni: about 25 s), which all pods see at once.
      readinessProbe:
        {{- if .Values.probes.grpc }}
        grpc: {port: 50051}
        {{- else }}
        httpGet: {path: /readyz, port: ops}
        {{- end }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 6
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ .Values.preStopSeconds | quote }}]
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - {name: settings, mountPath: /etc/sagastore/settings, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if $holder }}
        - {name: data, mountPath: /var/lib/sagastore}
        {{- end }}
        {{- if .Values.tls.existingSecret }}
        - {name: tls, mountPath: /etc/sagastore/tls, readOnly: true}
        {{- end }}
        {{- if .Values.access.existingSecret }}
        - {name: access, mountPath: /etc/sagastore/access, readOnly: true}
        {{- end }}
        {{- if and $forwards .Values.forwarding.tlsSecret }}
        - {name: forwarding, mountPath: /etc/sagastore/forwarding, readOnly: true}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: settings
      configMap:
        name: {{ include "sagastore.fullname" . }}
    - name: tmp
      emptyDir: {}
    {{- if .Values.tls.existingSecret }}
    - name: tls
      secret:
        secretName: {{ .Values.tls.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if .Values.access.existingSecret }}
    - name: access
      secret:
        secretName: {{ .Values.access.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if and $forwards .Values.forwarding.tlsSecret }}
    - name: forwarding
      secret:
        secretName: {{ .Values.forwarding.tlsSecret }}
        defaultMode: 0440
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sagastore.selector" $root | nindent 10 }}
    {{- end }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}
