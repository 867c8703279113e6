// Command meshcheck reads a MeshConfig (YAML) from its standard input as Istio does, strictly, and
// prints it as JSON, with nothing but what was read. MeshConfig is no custom resource, so there is
// no schema that it could be held against.
package main

import (
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/protobuf/encoding/protojson"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"
)

func main() {
	log.SetFlags(0)
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	told, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		log.Fatal(err)
	}
	var config meshconfig.MeshConfig
	if err := protojson.Unmarshal(told, &config); err != nil {
		log.Fatal(err)
	}
	read, err := protojson.Marshal(&config)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(read))
}
