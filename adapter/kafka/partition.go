package kafka

import "github.com/twmb/franz-go/pkg/kgo"

// partitioner chooses as the Java client does, murmur2 of the key, and asks first
// whether the number of partitions is still the one that the keys were spread over.
type partitioner struct{ s *core }

// ForTopic returns the choice for one topic.
func (p partitioner) ForTopic(name string) kgo.TopicPartitioner {
	return &guarded{p.s, name, kgo.StickyKeyPartitioner(nil).ForTopic(name)}
}

type guarded struct {
	s    *core
	name string
	by   kgo.TopicPartitioner
}

// RequiresConsistency reports whether the record has a key.
func (g *guarded) RequiresConsistency(r *kgo.Record) bool { return g.by.RequiresConsistency(r) }

// Partition returns -1, which fails the record before it is sent, if its key would
// move.
func (g *guarded) Partition(r *kgo.Record, n int) int {
	if g.by.RequiresConsistency(r) && !g.s.counted(g.name, n) {
		return -1
	}
	return g.by.Partition(r, n)
}

// OnNewBatch lets records without a key go on to another partition.
func (g *guarded) OnNewBatch() {
	if by, ok := g.by.(kgo.TopicPartitionerOnNewBatch); ok {
		by.OnNewBatch()
	}
}
