// Command interop checks an authz log with code that is not authz's: golang.org/x/mod/sumdb and
// filippo.io/torchwood. And it makes proofs with that code, for authz to check.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("want: check, tree, proof or make")
	}
	commands := map[string]func([]string) (any, error){
		"check": check, "tree": tree, "proof": proof, "make": makeProofs,
	}
	command, known := commands[os.Args[1]]
	if !known {
		log.Fatalf("no such command: %s", os.Args[1])
	}
	told, err := command(os.Args[2:])
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		log.Fatal(err)
	}
}

// opened is the checkpoint in a note that the key signed.
func opened(signed []byte, vkey string) (torchwood.Checkpoint, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	checkpoint, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil {
		return checkpoint, err
	}
	if checkpoint.Origin != verifier.Name() {
		return checkpoint, fmt.Errorf("the checkpoint is of %q", checkpoint.Origin)
	}
	return checkpoint, nil
}

// tileReader fetches tiles for tlog's own TileHashReader, one after the other.
type tileReader struct{ url string }

func (r tileReader) Height() int                     { return torchwood.TileHeight }
func (r tileReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, tile := range tiles {
		body, err := get(r.url + "/" + torchwood.TilePath(tile))
		if err != nil {
			return nil, err
		}
		data = append(data, body)
	}
	return data, nil
}

func get(url string) ([]byte, error) {
	response, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return io.ReadAll(response.Body)
}

// check holds records and earlier checkpoints against the log at a URL, by tlog alone. Its input
// is JSON: the notes of checkpoints, and leaves by index.
func check(args []string) (any, error) {
	flags := flag.NewFlagSet("check", flag.ExitOnError)
	url := flags.String("url", "", "prefix of the log")
	vkey := flags.String("vkey", "", "the log's verifier key")
	flags.Parse(args)
	var given struct {
		Leaves      map[int64][]byte
		Checkpoints []string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return nil, err
	}
	signed, err := get(*url + "/checkpoint")
	if err != nil {
		return nil, err
	}
	newest, err := opened(signed, *vkey)
	if err != nil {
		return nil, err
	}
	hashes := tlog.TileHashReader(newest.Tree, tileReader{*url})
	for index, leaf := range given.Leaves {
		found, err := tlog.ProveRecord(newest.N, index, hashes)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", index, err)
		}
		err = tlog.CheckRecord(found, newest.N, newest.Hash, index, tlog.RecordHash(leaf))
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", index, err)
		}
	}
	for _, text := range given.Checkpoints {
		older, err := opened([]byte(text), *vkey)
		if err != nil {
			return nil, err
		}
		found, err := tlog.ProveTree(newest.N, older.N, hashes)
		if err != nil {
			return nil, fmt.Errorf("tree %d: %w", older.N, err)
		}
		err = tlog.CheckTree(found, newest.N, newest.Hash, older.N, older.Hash)
		if err != nil {
			return nil, fmt.Errorf("tree %d: %w", older.N, err)
		}
	}
	return map[string]any{
		"size": newest.N, "records": len(given.Leaves), "trees": len(given.Checkpoints),
	}, nil
}

// bearer adds a token to each request.
type bearer struct{ token string }

func (b bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(request)
}

// source is where a log's tiles are: a folder, or a URL with a token.
func source(directory, url, token string) (torchwood.TileReader, error) {
	if directory != "" {
		return torchwood.NewTileFS(os.DirFS(directory))
	}
	secret, err := os.ReadFile(token)
	if err != nil {
		return nil, err
	}
	return torchwood.NewTileFetcher(url, torchwood.WithHTTPClient(
		&http.Client{Transport: bearer{strings.TrimSpace(string(secret))}}))
}

// tree reads every entry of the log in a folder or at a URL by torchwood's client, which hashes
// each and holds it against the tree.
func tree(args []string) (any, error) {
	flags := flag.NewFlagSet("tree", flag.ExitOnError)
	directory := flags.String("directory", "", "the log's folder in an exported bundle")
	url := flags.String("url", "", "or the prefix of a log that is served")
	vkey := flags.String("vkey", "", "the log's verifier key")
	token := flags.String("token", "", "with -url: file with the token for entries")
	flags.Parse(args)
	fetcher, err := source(*directory, *url, *token)
	if err != nil {
		return nil, err
	}
	cut := func(tile []byte) ([]byte, tlog.Hash, []byte, error) {
		entry, rest, err := torchwood.ReadTileEntry(tile)
		return entry, tlog.RecordHash(entry), rest, err
	}
	client, err := torchwood.NewClient(fetcher, torchwood.WithCutEntry(cut))
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	signed, err := fetcher.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		return nil, err
	}
	newest, err := opened(signed, *vkey)
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	next := int64(0)
	for next < newest.N { // the last, partial bundle comes when it is asked for by itself
		before := next
		for index, entry := range client.Entries(ctx, newest.Tree, next) {
			if index != next {
				return nil, fmt.Errorf("entry %d instead of %d", index, next)
			}
			entries = append(entries, slices.Clone(entry))
			next++
		}
		if err := client.Err(); err != nil {
			return nil, err
		}
		if next == before {
			return nil, errors.New("no more entries come")
		}
	}
	return map[string]any{"size": newest.N, "entries": entries}, nil
}

// proof checks files of `authz prove` by torchwood, under a policy of the log and its witnesses.
func proof(args []string) (any, error) {
	flags := flag.NewFlagSet("proof", flag.ExitOnError)
	vkey := flags.String("vkey", "", "the log's verifier key")
	flags.Parse(args)
	policy, err := torchwood.ParsePolicy([]byte("log " + *vkey + "\nquorum none\n"))
	if err != nil {
		return nil, err
	}
	records := map[string][]byte{}
	for _, path := range flags.Args() {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		leaf, err := torchwood.ProofExtraData(data)
		if err != nil {
			return nil, err
		}
		if err := torchwood.VerifyProof(policy, tlog.RecordHash(leaf), data); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		changed := tlog.RecordHash(append(leaf, ' '))
		if err := torchwood.VerifyProof(policy, changed, data); err == nil {
			return nil, fmt.Errorf("%s: proves another record too", path)
		}
		records[path] = leaf
	}
	return records, nil
}

// makeProofs makes a log of the leaves in its input (JSON) with a key, by tlog, and a proof of each
// by torchwood, and consistency proofs from every size.
func makeProofs(args []string) (any, error) {
	flags := flag.NewFlagSet("make", flag.ExitOnError)
	key := flags.String("key", "", "file with the log's private key")
	directory := flags.String("directory", "", "where proofs are written")
	flags.Parse(args)
	var leaves [][]byte
	if err := json.NewDecoder(os.Stdin).Decode(&leaves); err != nil {
		return nil, err
	}
	secret, err := os.ReadFile(*key)
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(secret)))
	if err != nil {
		return nil, err
	}
	var stored []tlog.Hash
	hashes := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	size := int64(len(leaves))
	var roots []tlog.Hash
	for index, leaf := range leaves {
		more, err := tlog.StoredHashes(int64(index), leaf, hashes)
		if err != nil {
			return nil, err
		}
		stored = append(stored, more...)
		root, err := tlog.TreeHash(int64(index+1), hashes)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	text := torchwood.Checkpoint{Origin: signer.Name(), Tree: tlog.Tree{N: size, Hash: roots[size-1]}}
	signed, err := note.Sign(&note.Note{Text: text.String()}, signer)
	if err != nil {
		return nil, err
	}
	for index, leaf := range leaves {
		found, err := tlog.ProveRecord(size, int64(index), hashes)
		if err != nil {
			return nil, err
		}
		data := torchwood.FormatProofWithExtraData(int64(index), leaf, found, signed)
		path := filepath.Join(*directory, fmt.Sprintf("%d.tlog-proof", index))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
	}
	told := map[string]any{"roots": roots}
	var trees [][]string
	for old := int64(1); old <= size; old++ {
		found, err := tlog.ProveTree(size, old, hashes)
		if err != nil {
			return nil, err
		}
		lines := []string{}
		for _, hash := range found {
			lines = append(lines, base64.StdEncoding.EncodeToString(hash[:]))
		}
		trees = append(trees, lines)
	}
	told["trees"] = trees
	return told, nil
}
