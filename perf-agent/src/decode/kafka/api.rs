//! Kafka's request types and error codes, by number.
//!
//! Own tables: the `kafka-protocol` crate generates every message of every version (hundreds of
//! types that allocate what a length field claims), and a decoder needs the name, where the header
//! becomes flexible, and where the error code is.

/// Where an answer's error code is, behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAt {
    /// In every version at the beginning.
    First,
    /// At the beginning, and behind the throttle time from this version on.
    ThrottledFrom(i16),
    /// From this version on at a fixed place: behind the throttle time.
    OnlyFrom(i16),
    /// As `ThrottledFrom(1)` before this version, and in nested lists from it on.
    Until(i16),
    /// In the first partition of the first topic.
    Produce,
    /// Somewhere in the body.
    Unknown,
}

/// One request type.
pub struct Api {
    pub name: &'static str,
    /// First version with the flexible header.
    pub flexible: i16,
    pub error: ErrorAt,
}

const NEVER: i16 = i16::MAX;

const fn api(name: &'static str, flexible: i16, error: ErrorAt) -> Api {
    Api {
        name,
        flexible,
        error,
    }
}

const fn plain(name: &'static str, flexible: i16) -> Api {
    api(name, flexible, ErrorAt::Unknown)
}

/// By API key. Where "flexible" begins is each message's `flexibleVersions` in the protocol's
/// definition files.
pub const APIS: &[Api] = &[
    api("Produce", 9, ErrorAt::Produce),
    api("Fetch", 12, ErrorAt::OnlyFrom(7)),
    plain("ListOffsets", 6),
    plain("Metadata", 9),
    api("LeaderAndIsr", 4, ErrorAt::First),
    api("StopReplica", 2, ErrorAt::First),
    api("UpdateMetadata", 6, ErrorAt::First),
    api("ControlledShutdown", 3, ErrorAt::First),
    plain("OffsetCommit", 8),
    plain("OffsetFetch", 6),
    api("FindCoordinator", 3, ErrorAt::Until(4)),
    api("JoinGroup", 6, ErrorAt::ThrottledFrom(2)),
    api("Heartbeat", 4, ErrorAt::ThrottledFrom(1)),
    api("LeaveGroup", 4, ErrorAt::ThrottledFrom(1)),
    api("SyncGroup", 4, ErrorAt::ThrottledFrom(1)),
    plain("DescribeGroups", 5),
    api("ListGroups", 3, ErrorAt::ThrottledFrom(1)),
    api("SaslHandshake", NEVER, ErrorAt::First),
    api("ApiVersions", 3, ErrorAt::First),
    plain("CreateTopics", 5),
    plain("DeleteTopics", 4),
    plain("DeleteRecords", 2),
    api("InitProducerId", 2, ErrorAt::ThrottledFrom(0)),
    plain("OffsetForLeaderEpoch", 4),
    plain("AddPartitionsToTxn", 3),
    api("AddOffsetsToTxn", 3, ErrorAt::ThrottledFrom(0)),
    api("EndTxn", 3, ErrorAt::ThrottledFrom(0)),
    plain("WriteTxnMarkers", 1),
    plain("TxnOffsetCommit", 3),
    api("DescribeAcls", 2, ErrorAt::ThrottledFrom(0)),
    plain("CreateAcls", 2),
    plain("DeleteAcls", 2),
    plain("DescribeConfigs", 4),
    plain("AlterConfigs", 2),
    plain("AlterReplicaLogDirs", 2),
    plain("DescribeLogDirs", 2),
    api("SaslAuthenticate", 2, ErrorAt::First),
    plain("CreatePartitions", 2),
    api("CreateDelegationToken", 2, ErrorAt::First),
    api("RenewDelegationToken", 2, ErrorAt::First),
    api("ExpireDelegationToken", 2, ErrorAt::First),
    api("DescribeDelegationToken", 2, ErrorAt::First),
    plain("DeleteGroups", 2),
    plain("ElectLeaders", 2),
    plain("IncrementalAlterConfigs", 1),
    api("AlterPartitionReassignments", 0, ErrorAt::ThrottledFrom(0)),
    api("ListPartitionReassignments", 0, ErrorAt::ThrottledFrom(0)),
    api("OffsetDelete", NEVER, ErrorAt::First),
    api("DescribeClientQuotas", 1, ErrorAt::ThrottledFrom(0)),
    plain("AlterClientQuotas", 1),
    api("DescribeUserScramCredentials", 0, ErrorAt::ThrottledFrom(0)),
    plain("AlterUserScramCredentials", 0),
    api("Vote", 0, ErrorAt::First),
    api("BeginQuorumEpoch", 1, ErrorAt::First),
    api("EndQuorumEpoch", 1, ErrorAt::First),
    api("DescribeQuorum", 0, ErrorAt::First),
    api("AlterPartition", 0, ErrorAt::ThrottledFrom(0)),
    api("UpdateFeatures", 0, ErrorAt::ThrottledFrom(0)),
    plain("Envelope", 0),
    api("FetchSnapshot", 0, ErrorAt::ThrottledFrom(0)),
    api("DescribeCluster", 0, ErrorAt::ThrottledFrom(0)),
    plain("DescribeProducers", 0),
    api("BrokerRegistration", 0, ErrorAt::ThrottledFrom(0)),
    api("BrokerHeartbeat", 0, ErrorAt::ThrottledFrom(0)),
    api("UnregisterBroker", 0, ErrorAt::ThrottledFrom(0)),
    plain("DescribeTransactions", 0),
    api("ListTransactions", 0, ErrorAt::ThrottledFrom(0)),
    api("AllocateProducerIds", 0, ErrorAt::ThrottledFrom(0)),
    api("ConsumerGroupHeartbeat", 0, ErrorAt::ThrottledFrom(0)),
    plain("ConsumerGroupDescribe", 0),
    api("ControllerRegistration", 0, ErrorAt::ThrottledFrom(0)),
    api("GetTelemetrySubscriptions", 0, ErrorAt::ThrottledFrom(0)),
    api("PushTelemetry", 0, ErrorAt::ThrottledFrom(0)),
    api("AssignReplicasToDirs", 0, ErrorAt::ThrottledFrom(0)),
    api("ListConfigResources", 0, ErrorAt::ThrottledFrom(0)),
    plain("DescribeTopicPartitions", 0),
    api("ShareGroupHeartbeat", 0, ErrorAt::ThrottledFrom(0)),
    plain("ShareGroupDescribe", 0),
    api("ShareFetch", 0, ErrorAt::ThrottledFrom(0)),
    api("ShareAcknowledge", 0, ErrorAt::ThrottledFrom(0)),
    api("AddRaftVoter", 0, ErrorAt::ThrottledFrom(0)),
    api("RemoveRaftVoter", 0, ErrorAt::ThrottledFrom(0)),
    api("UpdateRaftVoter", 0, ErrorAt::ThrottledFrom(0)),
    plain("InitializeShareGroupState", 0),
    plain("ReadShareGroupState", 0),
    plain("WriteShareGroupState", 0),
    plain("DeleteShareGroupState", 0),
    plain("ReadShareGroupStateSummary", 0),
    plain("StreamsGroupHeartbeat", 0),
    plain("StreamsGroupDescribe", 0),
    plain("DescribeShareGroupOffsets", 0),
    plain("AlterShareGroupOffsets", 0),
    plain("DeleteShareGroupOffsets", 0),
];

pub const PRODUCE: i16 = 0;
pub const FETCH: i16 = 1;
pub const SASL_HANDSHAKE: i16 = 17;
pub const API_VERSIONS: i16 = 18;

/// The request type of a key.
pub fn by_key(key: i16) -> Option<&'static Api> {
    APIS.get(usize::try_from(key).ok()?)
}

/// Names of the error codes clients meet; others are shown as their number.
const ERRORS: &[(i16, &str)] = &[
    (-1, "UNKNOWN_SERVER_ERROR"),
    (1, "OFFSET_OUT_OF_RANGE"),
    (2, "CORRUPT_MESSAGE"),
    (3, "UNKNOWN_TOPIC_OR_PARTITION"),
    (5, "LEADER_NOT_AVAILABLE"),
    (6, "NOT_LEADER_OR_FOLLOWER"),
    (7, "REQUEST_TIMED_OUT"),
    (10, "MESSAGE_TOO_LARGE"),
    (14, "COORDINATOR_LOAD_IN_PROGRESS"),
    (15, "COORDINATOR_NOT_AVAILABLE"),
    (16, "NOT_COORDINATOR"),
    (17, "INVALID_TOPIC_EXCEPTION"),
    (18, "RECORD_LIST_TOO_LARGE"),
    (19, "NOT_ENOUGH_REPLICAS"),
    (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND"),
    (22, "ILLEGAL_GENERATION"),
    (25, "UNKNOWN_MEMBER_ID"),
    (27, "REBALANCE_IN_PROGRESS"),
    (29, "TOPIC_AUTHORIZATION_FAILED"),
    (30, "GROUP_AUTHORIZATION_FAILED"),
    (31, "CLUSTER_AUTHORIZATION_FAILED"),
    (33, "UNSUPPORTED_SASL_MECHANISM"),
    (34, "ILLEGAL_SASL_STATE"),
    (35, "UNSUPPORTED_VERSION"),
    (45, "OUT_OF_ORDER_SEQUENCE_NUMBER"),
    (47, "INVALID_PRODUCER_EPOCH"),
    (48, "INVALID_TXN_STATE"),
    (58, "SASL_AUTHENTICATION_FAILED"),
    (70, "FETCH_SESSION_ID_NOT_FOUND"),
    (71, "INVALID_FETCH_SESSION_EPOCH"),
    (74, "FENCED_LEADER_EPOCH"),
    (75, "UNKNOWN_LEADER_EPOCH"),
    (79, "MEMBER_ID_REQUIRED"),
    (82, "FENCED_INSTANCE_ID"),
    (87, "INVALID_RECORD"),
    (89, "THROTTLING_QUOTA_EXCEEDED"),
    (90, "PRODUCER_FENCED"),
    (100, "UNKNOWN_TOPIC_ID"),
];

/// The name of an error code, empty if not known.
pub fn error_name(code: i16) -> &'static str {
    let found = ERRORS.iter().find(|(n, _)| *n == code);
    found.map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_stand_at_their_places() {
        let expected = [
            (0, "Produce"),
            (18, "ApiVersions"),
            (36, "SaslAuthenticate"),
            (47, "OffsetDelete"),
            (60, "DescribeCluster"),
            (68, "ConsumerGroupHeartbeat"),
            (75, "DescribeTopicPartitions"),
            (92, "DeleteShareGroupOffsets"),
        ];
        for (key, name) in expected {
            assert_eq!(by_key(key).map(|a| a.name), Some(name));
        }
        assert!(by_key(93).is_none() && by_key(-1).is_none());
        assert_eq!(
            (error_name(3), error_name(999)),
            ("UNKNOWN_TOPIC_OR_PARTITION", "")
        );
    }
}
