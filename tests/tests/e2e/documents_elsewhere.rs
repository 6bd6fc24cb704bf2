//! Commands of documents that a test gives in its own words: each with the test. No machine of the tests has a cluster, so
//! what `kubectl` would be given is held against the schemas of Kubernetes instead.

const SAMPLES: &str = "up_with_no_edit_delivers_the_samples_and_a_hub_whose_api_answers";
const PRODUCTION: &str = "production_is_bounded_keeps_classic_logs_and_works_through_a_reverse_proxy";
const STACK: &str = "a_stack_from_a_private_registry_is_updated_under_load_and_loses_nothing";
const CLUSTER: &str = "the_kubernetes_manifests_fit_their_schemas_each_other_and_the_programs";

/// The command, without its comment, and the test.
pub const ELSEWHERE: &[(&str, &str)] = &[
    ("docker compose up --build", SAMPLES),
    ("docker compose run --rm client jobs list", SAMPLES),
    ("docker compose cp hub:/bootstrap/ca.pem . && docker compose cp hub:/bootstrap/api-key .", SAMPLES),
    (
        "curl --cacert ca.pem -H \"Authorization: Bearer $(cat api-key)\" https://localhost:8443/v1/jobs",
        SAMPLES,
    ),
    ("docker compose up -d samples", SAMPLES),
    ("docker compose down", SAMPLES),
    ("docker network create proxy", PRODUCTION),
    ("docker compose -f compose.yaml -f compose.prod.yaml up -d --no-deps hub", PRODUCTION),
    (
        "docker compose exec hub /usr/bin/passerelle-hub admin tenant create acme --tier enterprise",
        PRODUCTION,
    ),
    (
        "docker compose exec hub /usr/bin/passerelle-hub admin api-key create --tenant acme --scopes all",
        PRODUCTION,
    ),
    (
        "docker compose exec hub /usr/bin/passerelle-hub admin enrolment-token create --tenant acme --site paris --application orchestrator",
        PRODUCTION,
    ),
    ("mkdir -p /srv/passerelle/config /srv/passerelle/secrets /srv/passerelle/logs", PRODUCTION),
    ("cp -r deploy/compose/prod/. /srv/passerelle/config/", PRODUCTION),
    ("cp token.txt /srv/passerelle/secrets/enrolment-token", PRODUCTION),
    ("cp ed25519 /srv/passerelle/secrets/sftp-key", PRODUCTION),
    ("chown -R 10001:10001 /srv/passerelle && chmod 0400 /srv/passerelle/secrets/*", PRODUCTION),
    ("docker compose -f compose.yaml -f compose.prod.yaml up -d --no-deps agent", PRODUCTION),
    ("docker build --target agent -t localhost:5000/passerelle/agent:0.1.0 .", STACK),
    ("docker push localhost:5000/passerelle/agent:0.1.0", STACK),
    ("docker build --target hub -t localhost:5000/passerelle/hub:0.1.0 .", STACK),
    ("docker push localhost:5000/passerelle/hub:0.1.0", STACK),
    ("docker swarm init", STACK),
    ("docker network create --driver overlay --attachable passerelle-site", STACK),
    ("docker secret create passerelle-tls-cert hub.pem", STACK),
    ("docker secret create passerelle-tls-key hub-key.pem", STACK),
    ("export PASSERELLE_HUB_IMAGE=localhost:5000/passerelle/hub:0.1.0", STACK),
    ("docker stack deploy -c stack.hub.yaml passerelle-hub", STACK),
    ("hub=$(docker ps -q --filter label=com.docker.swarm.service.name=passerelle-hub_hub)", STACK),
    ("docker exec \"$hub\" /usr/bin/passerelle-hub admin tenant create acme --tier enterprise", STACK),
    (
        "docker exec \"$hub\" /usr/bin/passerelle-hub admin enrolment-token create --tenant acme --site paris --application orchestrator --uses 2",
        STACK,
    ),
    ("docker secret create passerelle-enrolment-token token.txt", STACK),
    ("docker secret create passerelle-hub-ca ca.pem", STACK),
    ("docker secret create passerelle-orders-token orders-token.txt", STACK),
    ("export PASSERELLE_AGENT_IMAGE=localhost:5000/passerelle/agent:0.1.0 PASSERELLE_SITE=paris", STACK),
    ("docker stack deploy -c stack.yaml passerelle", STACK),
    ("docker service update --image localhost:5000/passerelle/agent:0.2.0 passerelle_agent-1", STACK),
    ("docker service update --image localhost:5000/passerelle/agent:0.2.0 passerelle_agent-2", STACK),
    ("docker stack rm passerelle passerelle-hub", STACK),
    ("kubectl kustomize deploy/kubernetes", CLUSTER),
    ("kubectl apply -k deploy/kubernetes", CLUSTER),
];
