package kafka

import (
	"bytes"
	"sync"

	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
)

// blocks compresses batches as LZ4 in blocks of 64 KiB, as Kafka's own producer does. The
// client's compressor makes blocks of 4 MiB, whose buffers would be a good part of the
// memory that the program has.
type blocks struct{ writers sync.Pool }

// Compress compresses one batch. See [kgo.Compressor].
func (b *blocks) Compress(dst *bytes.Buffer, src []byte, _ ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	w, ok := b.writers.Get().(*lz4.Writer)
	if !ok {
		w = lz4.NewWriter(nil)
		if w.Apply(lz4.BlockSizeOption(lz4.Block64Kb)) != nil {
			return nil, kgo.CodecError
		}
	}
	defer b.writers.Put(w)
	w.Reset(dst)
	if _, err := w.Write(src); err != nil || w.Close() != nil {
		return nil, kgo.CodecError
	}
	return dst.Bytes(), kgo.CodecLz4
}
